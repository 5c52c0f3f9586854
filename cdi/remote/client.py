"""Blocking client of a cluster's API, with additional operations for commands."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

from cdi.api.errors import KindNotServed, NotFound
from cdi.kube.resources import Object, Resource
from cdi.kube.sync import SyncClient

T = TypeVar("T")
_AHEAD = 256
"""Number of stream chunks that are buffered for the reader."""


class ClusterClient(SyncClient):
    """Blocking client; methods may be called by any thread."""

    def find(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """Return an object, or None if it does not exist."""
        try:
            return self.run(self.client.get(resource, namespace, name))
        except KindNotServed:
            raise
        except NotFound:
            return None

    def stream(self, source: AsyncIterator[T]) -> Iterator[T]:
        """Yield the items of `source` as they arrive; it is closed with the iterator."""
        pieces: queue.Queue[tuple[bool, Any]] = queue.Queue(_AHEAD)
        room = asyncio.Semaphore(_AHEAD)
        loop = self.run(_loop())

        async def pump() -> None:
            try:
                async for piece in source:
                    await room.acquire()
                    pieces.put_nowait((True, piece))
            except Exception as error:  # noqa: BLE001  raised again in the reader
                await room.acquire()
                pieces.put_nowait((False, error))
            else:
                await room.acquire()
                pieces.put_nowait((False, None))

        future = self.start(pump())
        try:
            while True:
                more, piece = pieces.get()
                loop.call_soon_threadsafe(room.release)
                if more:
                    yield piece
                elif piece is None:
                    return
                else:
                    raise piece
        finally:
            future.cancel()


async def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
