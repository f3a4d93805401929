"""Runs that go on go in; their report is served to browsers on this machine, until they have ended.

The server only answers GET, at an address that nobody can guess, under a Host that is this machine: a page of another
site, which has its own name resolved to 127.0.0.1, is refused."""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.runs.logs import INTERRUPTED
from scaleup.runs.report import Subject, render, write_report
from scaleup.runs.state import place_of

HOST = "127.0.0.1"
POLL_SECONDS = 0.5
FRESH_SECONDS = 1.5
"""Is how old a page may be that is served again."""
LINGER_SECONDS = 8.0
"""Is how long the server waits for browsers to ask for the last page."""
GAP_SECONDS = 45.0
"""Is how long no run of a pipeline may go on before it has ended: one run is planned after the other."""
SCRIPT = """
const renew = async () => {
  try {
    const answer = await fetch(location.href, {cache: "no-store"});
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (answer.ok && next.querySelector("main").innerHTML !== document.querySelector("main").innerHTML) {
      for (const each of document.querySelectorAll("details[open]")) {
        const same = next.getElementById(each.id);
        if (same) same.open = true;
      }
      const places = [...document.querySelectorAll(".scroll, pre")].map((each) => each.scrollLeft);
      document.body.replaceChildren(...next.body.childNodes);
      document.querySelectorAll(".scroll, pre").forEach((each, place) => { each.scrollLeft = places[place] || 0; });
    }
  } catch { document.querySelector(".live")?.replaceChildren("no longer live"); return; }
  if (document.querySelector("main[data-live]")) setTimeout(renew, 2000);
};
setTimeout(renew, 2000);
"""
"""Asks for the page again and again, and shows what is new: what was opened and scrolled stays so."""


@dataclass
class Live:
    """Holds the page that is served."""

    subject: Subject
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    is_over: bool = False
    asked_at: float = -1e9
    """Is when a page was asked for last, by the process's own clock."""
    last_was_served: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _text: str = ""
    _made_at: float = -1e9

    def page(self) -> str:
        """Returns the page as it is now, or was a moment ago. Raises ScaleupError where a run cannot be read."""
        with self._lock:
            is_last = self.is_over
            if is_last or time.monotonic() - self._made_at > FRESH_SECONDS:
                self._text = render(self.subject, "" if is_last else SCRIPT)
                self._made_at = time.monotonic()
            self.asked_at = time.monotonic()
            self.last_was_served = is_last
            return self._text


def follow(subject: Subject) -> int:
    """Serve a report until its runs have ended, then write it. Return the exit code.

    Raises ScaleupError where the report cannot be written."""
    live = Live(subject)
    code = 0
    try:
        with served(live) as address:
            print(f"{address} until the runs have ended, or Ctrl-C", flush=True)
            _wait(live)
    except KeyboardInterrupt:
        code = INTERRUPTED
    print(write_report(subject))
    return code


def _wait(live: Live) -> None:
    """Waits for the end of the runs, and for browsers that look at them to have the last page."""
    seen = time.monotonic()
    while (goes_on := _goes_on(live.subject)) or time.monotonic() - seen < _patience(live.subject):
        seen = time.monotonic() if goes_on else seen
        time.sleep(POLL_SECONDS)
    live.is_over = True
    ended = time.monotonic()
    looks_on = live.asked_at > ended - LINGER_SECONDS
    while looks_on and not live.last_was_served and time.monotonic() < ended + LINGER_SECONDS:
        time.sleep(POLL_SECONDS)


def _goes_on(subject: Subject) -> bool:
    return any(place_of(RunFolder(folder)) is not None for folder in subject.runs.values())


def _patience(subject: Subject) -> float:
    """Returns for how many seconds no run may go on before all is over: none, but where a pipeline has more to do."""
    is_left = any(not run.folder.manifest_file.is_file() for _, each in subject.pipelines for run in each.runs.values())
    return GAP_SECONDS if is_left else 0.0


@contextmanager
def served(live: Live) -> Iterator[str]:
    """Serve a page at an address of this machine, which is yielded, until the block ends."""

    hosts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.headers.get("Host") not in hosts:
                self._answer(HTTPStatus.FORBIDDEN, "This page is for browsers on its own machine.", "plain")
            elif not secrets.compare_digest(self.path.encode(), f"/{live.secret}/".encode()):
                self._answer(HTTPStatus.NOT_FOUND, "There is nothing here.", "plain")
            else:
                try:
                    self._answer(HTTPStatus.OK, live.page(), "html")
                except ScaleupError as error:
                    self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), "plain")

        def _answer(self, status: HTTPStatus, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing: the address is a secret."""

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # the last page is sent whole before the server ends

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Print nothing of browsers that have gone."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    with Server((HOST, 0), Handler) as server:
        port = server.server_address[1]
        hosts += [f"{HOST}:{port}", f"localhost:{port}"]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield f"http://{hosts[0]}/{live.secret}/"
        finally:
            server.shutdown()
            thread.join()
