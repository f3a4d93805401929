"""A session goes in; a page on 127.0.0.1 that shows it to whoever has the secret of its address comes out."""

from __future__ import annotations

import hmac
import json
import secrets
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

from scaleup.errors import ScaleupError
from scaleup.labelling.session import Session

ADDRESS = "127.0.0.1"
MOST_BYTES = 1 << 14
"""Bounds what is read of a request: a decision is shorter."""
MOST_DIGITS = 9
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/label.js": ("label.js", "text/javascript; charset=utf-8"),
    "/label.css": ("label.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SECONDS = 30.0
"""Is how long a connection may say nothing."""


class Refusal(Exception):
    """Carries the status and the sentence that a request is refused with."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class LabelServer(ThreadingHTTPServer):
    """Serves one session until it is finished from the page. The secret stands behind the `#` of its address, which
    browsers send to no one: the page's own script sends it with each request."""

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0) -> None:
        """Raises ScaleupError if the port is taken."""
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            what = f"{port} cannot be listened on: {error.strerror}"
            raise ScaleupError.of("--port", what, "leave it out: a free one is taken then") from None
        self.session, self.secret = session, secrets.token_urlsafe(24)
        self.port: int = self.server_address[1]
        self.hosts = {f"{name}:{self.port}" for name in (ADDRESS, "localhost")}

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.port}/#{self.secret}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Passes over a browser that went away before its answer; all else is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def finish(self) -> None:
        """Ends `serve_forever`, from a thread that answers a request."""
        threading.Thread(target=self.shutdown, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer
    protocol_version = "HTTP/1.1"
    timeout = SECONDS

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, act: Callable[[], tuple[str, bytes]]) -> None:
        """Answers a request, or says why not. Who asks under another name than ours was led here by another page."""
        try:
            if self.headers.get("Host") not in self.server.hosts:
                raise Refusal(HTTPStatus.MISDIRECTED_REQUEST, "another host is meant")
            kind, body = act()
            status = HTTPStatus.OK
        except Refusal as refusal:
            status, kind, body = refusal.status, "application/json", _json({"error": refusal.why})
            self.close_connection = True  # what it may have sent beyond is not read
        except ScaleupError as error:
            status, kind, body = HTTPStatus.INSUFFICIENT_STORAGE, "application/json", _json({"error": str(error)})
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _get(self) -> tuple[str, bytes]:
        path, _, query = self.path.partition("?")
        if path in PAGES:
            name, kind = PAGES[path]
            return kind, files("scaleup.labelling").joinpath("page", name).read_bytes()
        if path != "/state":
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such page")
        self._check_secret()
        return "application/json", _json(self.server.session.view(_number(parse_qs(query).get("at", [""])[0])))

    def _post(self) -> tuple[str, bytes]:
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise Refusal(HTTPStatus.FORBIDDEN, "another page may not send this")
        self._check_secret()
        asked, session = self._body(), self.server.session
        if self.path == "/decide":
            try:
                view = session.decide(asked.get("at"), asked.get("kind"), asked.get("ranks"))
            except ValueError as error:
                raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from None
            return "application/json", _json(view)
        if self.path == "/undo":
            return "application/json", _json(session.undo())
        if self.path == "/finish":
            self.close_connection = True
            self.server.finish()
            return "application/json", _json({})
        raise Refusal(HTTPStatus.NOT_FOUND, "there is no such page")

    def _check_secret(self) -> None:
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, f"Bearer {self.server.secret}".encode()):
            raise Refusal(HTTPStatus.UNAUTHORIZED, "open the whole address that scaleup label printed")

    def _body(self) -> dict[str, Any]:
        length = _number(self.headers.get("Content-Length", ""))
        if length is None or length > MOST_BYTES:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too long, or of no length")
        if self.headers.get_content_type() != "application/json":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "is no JSON")
        try:
            asked = json.loads(self.rfile.read(length))
        except (ValueError, RecursionError):
            raise Refusal(HTTPStatus.BAD_REQUEST, "is no JSON") from None
        if not isinstance(asked, dict):
            raise Refusal(HTTPStatus.BAD_REQUEST, "is no object")
        return asked

    def log_message(self, *_: object) -> None:
        """Says nothing: the address would stand in the terminal again for each request."""


def _number(text: str) -> int | None:
    """Returns a whole number of a request; None for what is none, or has more digits than any that is meant."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS else None


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
