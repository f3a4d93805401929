"""A live report answers this machine's browsers at its own address alone, and ends with the run."""

from __future__ import annotations

import http.client
import threading
from pathlib import Path

import pytest

from scaleup.runs.live import LINGER_SECONDS, Live, follow, served
from scaleup.runs.report import read_subject
from tests.cli import wait_until
from tests.unit.runs.made import ended, held, made


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_who_is_answered(tmp_path: Path) -> None:
    live = Live(read_subject([str(ended(made(tmp_path), "finished").path)]))
    with served(live) as address:
        port, path = int(address.split(":")[2].split("/")[0]), f"/{live.secret}/"
        assert address == f"http://127.0.0.1:{port}{path}"
        status, text = ask(port, path)
        assert (status, 'data-live="yes"' in text, "<script>" in text) == (200, True, True)
        assert ask(port, path, Host=f"localhost:{port}")[0] == 200
        for host in ("example.org", f"example.org:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
            assert ask(port, path, Host=host)[0] == 403
        for other in ("/", "/wrong/", f"{path}?x", f"{path}../"):
            assert ask(port, other)[0] == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(port, path, method)[0] == 501
        live.is_over = True
        text = ask(port, path)[1]
        assert "data-live" not in text
        assert "<script>" not in text
    with pytest.raises(OSError, match="refused"):
        ask(port, path)


def test_it_ends_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path, metrics=[{"step": 1, "loss": 2.0}])
    run.new_attempt()
    subject, codes = read_subject([str(run.path)]), []
    thread = threading.Thread(target=lambda: codes.append(follow(subject)), daemon=True)
    with held(run) as process:
        thread.start()
        printed: list[str] = []
        wait_until(lambda: bool(printed) or bool(printed.extend(capsys.readouterr().out.split()[:1])), 20)
        port, path = int(printed[0].split(":")[2].split("/")[0]), "/" + printed[0].split("/", 3)[3]
        assert "running" in ask(port, path)[1]
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)
    ended(run, "finished")
    last: list[str] = []
    wait_until(lambda: "data-live" not in last[-1] if last.append(ask(port, path)[1]) is None else False, 20)  # type: ignore[func-returns-value]
    thread.join(LINGER_SECONDS / 2)
    assert not thread.is_alive(), "it waits although a browser has seen the end"
    assert codes == [0]
    assert capsys.readouterr().out == f"{run.path / 'report.html'}\n"
    assert "<script>" not in (run.path / "report.html").read_text()
