"""HTTPS server with the status of a worker.

It only answers ``GET`` requests for known paths. Any client that reaches the pod may send one, so the number of
connections and threads, the size of a request and its duration are limited.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cdi.http.server.listener import HttpListener
from cdi.http.server.request import ServerRequest
from cdi.http.server.turn import in_turns
from cdi.http.sockets import listen

MAX_CLIENTS = 8
"""Maximum number of clients whose requests are incomplete, and of threads that answer requests."""
REQUEST_TIMEOUT = 5.0
"""Seconds that a client has to send a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """Content type and body of a response."""

    content_type: str
    body: bytes


def serve_status(port: int, context: ssl.SSLContext, answers: Mapping[str, Callable[[], Response]]) -> HttpListener:
    """Start to serve, until the returned listener is closed.

    Args:
        port: The port to listen on; 0 for any free one.
        context: TLS settings with the certificate.
        answers: Functions by path, called for each request's response.

    Raises:
        OSError: The port cannot be opened.

    """

    def serve(request: ServerRequest) -> bool:
        request.last = True  # clients come back seconds later, and idle ones would take the place of others
        if request.head.method != "GET":
            return request.respond(405, b"Method Not Allowed\n")
        make = answers.get(request.head.path)
        if make is None:
            return request.respond(404, b"Not Found\n")
        answer = make()
        return request.respond(
            200, answer.body, content_type=answer.content_type, headers={"Cache-Control": "no-store"}
        )

    return HttpListener(
        listen(port),
        lambda: context,
        in_turns(serve),
        most=MAX_CLIENTS,
        head_seconds=REQUEST_TIMEOUT,
        max_pending=MAX_CLIENTS,
    )
