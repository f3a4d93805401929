"""The page answers who has its secret and means it, names no model, and goes on from what was decided."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleup.errors import ScaleupError
from scaleup.labelling.labels import LabelFile
from scaleup.labelling.server import LabelServer
from scaleup.labelling.session import Session, shown_order
from tests.unit.labelling.made import items


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LabelServer]:
    with LabelFile(tmp_path, "ann", items(3).items) as file, LabelServer(Session(items(3), "ann", file)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def ask(
    server: LabelServer, path: str, body: Any = None, method: str | None = None, **headers: str | None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Asks as the page does, but for some headers; None leaves one out."""
    own = {"Host": f"127.0.0.1:{server.port}", "Authorization": f"Bearer {server.secret}"}
    if body is not None:
        own |= {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{server.port}"}
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    own["Content-Length"] = str(len(data))
    own |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host=True)
    for name, value in own.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(data)
    answer = connection.getresponse()
    read = answer.status, answer.read(), answer.headers
    connection.close()
    return read


CHOICE = {"at": 0, "kind": "choice", "ranks": [1, 2]}


def test_items_come_without_names_and_in_the_order_that_was_drawn(server: LabelServer) -> None:
    order = shown_order(items(3).items[0], 0, "ann")
    status, body, _ = ask(server, "/state")
    assert status == 200 and b"m0" not in body and b"m1" not in body
    assert json.loads(body)["answers"] == [f"answer {number}" for number in order]
    status, body, _ = ask(server, "/decide", CHOICE)
    assert status == 200 and json.loads(body)["at"] == 1
    (line,) = server.session._file.path.read_text().splitlines()
    assert json.loads(line)["ranks"][order[0]] == 1, "the ranks that stand in the file are in the order of the item"
    assert json.loads(ask(server, "/state?at=0")[1])["decision"] == {"kind": "choice", "ranks": [1, 2]}
    assert json.loads(ask(server, "/undo", {})[1])["decision"] is None


def test_all_are_decided(server: LabelServer) -> None:
    for at in (2, 0, 1):
        _, body, _ = ask(server, "/decide", CHOICE | {"at": at})
    assert json.loads(body) == {"at": None, "total": 3, "decided": 3, "labeller": "ann", "counts": {"choice": 3}}


@pytest.mark.parametrize(
    ("status", "asked"),
    {
        "no secret": (401, {"Authorization": None}),
        "another secret": (401, {"Authorization": "Bearer x"}),
        "an odd secret": (401, {"Authorization": "Bearer \xff"}),
        "another host": (421, {"Host": "evil.example"}),
        "another port": (421, {"Host": "127.0.0.1:1"}),
        "no host": (421, {"Host": None}),
        "another page": (403, {"Origin": "http://evil.example"}),
        "a page of a file": (403, {"Origin": "null"}),
        "a form": (415, {"Content_Type": "text/plain"}),
        "no length": (413, {"Content_Length": "x"}),
        "a long body": (413, {"Content_Length": "999999"}),
        "a length without end": (413, {"Content_Length": "9" * 5000}),
        "no address of a page": (403, {"Origin": "http://[::1"}),
    }.values(),
)
def test_who_may_not_is_refused_and_changes_nothing(
    server: LabelServer, status: int, asked: dict[str, str | None]
) -> None:
    assert ask(server, "/decide", CHOICE, **asked)[0] == status
    assert server.session.view()["decided"] == 0
    if "Authorization" in asked or "Host" in asked:
        assert ask(server, "/state", **asked)[0] == status


@pytest.mark.parametrize("body", [b"{", b"[]", {}, CHOICE | {"at": 3}, CHOICE | {"at": "0"}, CHOICE | {"ranks": [1]}])
def test_what_is_no_decision_is_refused(server: LabelServer, body: Any) -> None:
    status, said, _ = ask(server, "/decide", body)
    assert status == 400 and json.loads(said)["error"]


def test_addresses_that_are_none(server: LabelServer) -> None:
    assert ask(server, "http://[::1/state")[0] == 404
    status, body, _ = ask(server, "/state?at=" + "9" * 5000)
    assert (status, json.loads(body)["at"]) == (200, 0)


def test_pages_forbid_what_they_do_not_need(server: LabelServer) -> None:
    for path in ("/", "/label.js", "/label.css", "/state"):
        status, _, headers = ask(server, path)
        policy = headers["Content-Security-Policy"]
        assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    for path in ("/../labels.py", "/page/index.html", "/favicon.ico"):
        assert ask(server, path)[0] == 404
    assert ask(server, "/nothing", {})[0] == 404 and ask(server, "/state", method="PUT")[0] == 501
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_refused(server: LabelServer, tmp_path: Path) -> None:
    with pytest.raises(ScaleupError, match=f"--port: {server.port} cannot be listened on"):
        LabelServer(server.session, server.port)


def test_neither_answer_always_stands_first() -> None:
    many = items(400).items
    first = [shown_order(item, 0, "ann")[0] for item in many]
    assert 160 < sum(first) < 240
    assert first == [shown_order(item, 0, "ann")[0] for item in many], "a session that goes on shows the same"
    for seed, labeller in ((1, "ann"), (0, "ben")):
        same = sum(one == shown_order(item, seed, labeller)[0] for one, item in zip(first, many, strict=True))
        assert 160 < same < 240
