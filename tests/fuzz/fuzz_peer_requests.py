"""Fuzz target: what the two ends of a clone send each other is answered, verified or refused.

python tests/fuzz/fuzz_peer_requests.py -max_total_time=60
"""

from __future__ import annotations

import socket
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(
    include=["cdi.source.peer", "cdi.source.peer_chunks", "cdi.source.peer_messages", "cdi.transfer.clone.server"]
):
    from cdi.api.errors import CdiError, PeerProtocolError, UploadMalformed
    from cdi.http.server.request import ServerRequest
    from cdi.http.server.request_head import MAX_HEAD, parse, split
    from cdi.source.peer import PeerReplaced, PeerSource, verified
    from cdi.source.peer_chunks import CHUNK, ChunkHeader, leaf_hash
    from cdi.source.peer_messages import PROTOCOL, PeerFacts, PeerResult, parse_result
    from cdi.transfer.clone.clone_source import CurrentSource, DiskSource
    from cdi.transfer.clone.server import TargetServer
    from cdi.transfer.clone.window import SharedWindow

from tests.fuzz.seeds import run

DISK = tempfile.NamedTemporaryFile()  # noqa: SIM115 - open until the end
DISK.write(b"x" * 5000)
DISK.truncate(8192)
DISK.flush()
SOURCES = CurrentSource(lambda: DiskSource(DISK.name, "v"), lambda: None)
FACTS = SOURCES.current().facts()
LINK = SimpleNamespace(narrow=lambda: False, sending=len, check=lambda: None)
WINDOW = SharedWindow(1, lambda _: None)


def serve(data: bytes) -> None:
    """Have the source answer a request."""
    parts = split(data[:MAX_HEAD])
    if parts is None:
        return
    try:
        head = parse(parts[0])
    except UploadMalformed:
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        request = ServerRequest(ours, head, parts[1], stall_timeout=5, where="the client")  # type: ignore[arg-type]
        server = TargetServer("job", SOURCES, WINDOW)
        try:
            server.respond(request, LINK)
        except CdiError:
            pass
        else:
            assert request.responded
        finally:
            request.end()
            WINDOW.leave(server.subscriber)
        # Only the holder of the ticket gets content.
        assert not server.sent or head.path.startswith("/job/")


class Wire:
    """Connections whose peer answers with any bytes."""

    def __init__(self, answers: list[tuple[int, bytes]]) -> None:
        self._answers = answers

    def exchange(self, *_: object) -> SimpleNamespace:
        status, data = self._answers.pop(0) if self._answers else (200, b"")
        left = memoryview(data)

        def readinto(view: memoryview) -> int:
            nonlocal left
            count = min(len(view), len(left))
            view[:count] = left[:count]
            left = left[count:]
            return count

        return SimpleNamespace(status=status, body=SimpleNamespace(readinto=readinto), read_prefix=lambda n: data[:n])

    def release(self, response: SimpleNamespace) -> None:
        """Do nothing."""


def fetch(data: bytes, content: Literal["kubevirt", "archive"]) -> None:
    """Have the target read a response."""
    facts = PeerFacts(
        protocol=PROTOCOL, content=content, size=2 * CHUNK, data=0, validator="v", is_strong=True, tag="v"
    )
    source = PeerSource(Wire([(200, facts.to_json().encode()), (206, data)]), "job", content)  # type: ignore[arg-type]
    source.probe()
    reader, view, position = source.open(), memoryview(bytearray(CHUNK)), 0
    try:
        if content == "archive":
            while reader.readinto(view):
                pass
            return
        while (header := reader.next_header()) is not None:
            assert position <= header.offset <= facts.size
            position = header.offset
            reader.fill(view[: header.payload])
            if header.runs:
                assert len(verified(header, view[: header.payload])) == header.data
    except (CdiError, PeerReplaced):
        return
    finally:
        reader.close()


def target(data: bytes) -> None:
    kind, data = data[:1], data[1:]
    if kind == b"s":
        serve(data)
    elif kind == b"d":
        fetch(data, "kubevirt")
    elif kind == b"a":
        fetch(data, "archive")
    else:
        try:
            result = parse_result(data)
        except PeerProtocolError:
            return
        assert parse_result(result.to_json().encode()) == result
        if result.failure is not None:
            assert isinstance(result.failure.error(), CdiError)


def seeds() -> list[bytes]:
    body = b"x" * 4096
    leaf = leaf_hash(((0, 4096),), (body,))
    chunk = ChunkHeader(offset=0, leaf=leaf, runs=((0, 4096),), payload=4096).encode() + body
    fields = f'Host: h\r\nIf-Match: "{FACTS.tag}"\r\nRange: bytes=0-8191\r\n\r\n'
    paths = ("/job", "/job/content", "/job/leaves", "/other/content")
    answer = PeerResult(digest="d").to_json().encode()
    post = b"sPOST /job/result HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(answer)
    return [
        *(f"sGET {path} HTTP/1.1\r\n{fields}".encode() for path in paths),
        post + answer,
        b"d" + chunk + ChunkHeader(offset=CHUNK).encode(),
        b"a" + chunk,
        b"r" + answer,
        b"r" + PeerResult.of(PeerProtocolError("what")).to_json().encode(),
    ]


if __name__ == "__main__":
    run(target, seeds(), 8192, fixed=20_000)
