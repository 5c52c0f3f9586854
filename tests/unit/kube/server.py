"""Scriptable API server, including faults that a real one does not produce on demand."""

from __future__ import annotations

import asyncio
import json
from collections import deque

from aiohttp import web

from cdi.kube.client import Client
from cdi.kube.credentials import Endpoint, FixedCredentials
from cdi.kube.transport import Timeouts


class Server:
    """Server that responds to requests in the order of `script`; an unscripted request fails the test."""

    def __init__(self) -> None:
        self.script = deque()
        self.requests = []
        self.slept = []
        self.url = ""

    def answer(self, *answers) -> None:
        """Append responses: a status, (status, body[, headers]), or a coroutine function of the request."""
        self.script += answers

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.method, request.path, dict(request.query), body, dict(request.headers)))
        assert self.script, f"unexpected request {request.method} {request.path}"
        answer = self.script.popleft()
        if callable(answer):
            return await answer(request)
        status, body, headers = (*((answer,) if isinstance(answer, int) else answer), None, None)[:3]
        text = body if isinstance(body, str) else json.dumps(body if body is not None else status_of(status))
        return web.Response(status=status, text=text, content_type="application/json", headers=headers)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    def client(self, credentials=None, **timing) -> Client:
        chosen = credentials or FixedCredentials(Endpoint(server=self.url))
        return Client(chosen, timing=Timeouts(sleep=self.sleep, **timing))

    @property
    def asked(self) -> list[str]:
        return [f"{method} {path}" for method, path, *_ in self.requests]


def advance_clock(seconds: float) -> None:
    """Advance the clock of the running event loop, so that timers of that many seconds are due."""
    loop = asyncio.get_running_loop()
    time = loop.time
    loop.time = lambda: time() + seconds


def status_of(code: int, reason: str = "", message: str = "", **details):
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
        "details": details,
    }


def thing(name: str = "a", version: int = 1, uid: str = "u", namespace: str = "n", **more):
    metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **more}


def listing(*items, version: int = 1, following: str = ""):
    bare = [{key: value for key, value in item.items() if key not in ("apiVersion", "kind")} for item in items]
    metadata = {"resourceVersion": str(version)} | ({"continue": following} if following else {})
    return 200, {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": bare}


def event(kind: str, body) -> str:
    return json.dumps({"type": kind, "object": body}) + "\n"


def watched(*pieces, then=None):
    """Return a watch response that sends `pieces` and ends; `then` receives the request first."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece.encode() if isinstance(piece, str) else piece)
        if then is not None:
            await then(request)
        return response

    return handler


async def cut(request: web.Request) -> web.StreamResponse:
    """Close the connection."""
    request.transport.abort()
    return web.Response()


async def silent(request: web.Request) -> web.StreamResponse:
    """Send nothing until the client disconnects."""
    await asyncio.Event().wait()
    raise AssertionError
