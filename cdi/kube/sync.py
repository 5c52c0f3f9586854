"""Synchronous access to a client that runs in an event loop on its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from cdi.api.errors import KindNotServed, NotFound
from cdi.api.kinds import Object, Resource
from cdi.kube.client import Client

T = TypeVar("T")
_AHEAD = 256
"""Number of stream chunks that are buffered for the reader."""


class SyncClient:
    """Synchronous client; its methods may be called from any thread except that of the loop."""

    def __init__(self, client: Client) -> None:
        """Start the loop and enter `client`; raise what entering raises."""
        self.client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kube", daemon=True)
        self._thread.start()
        try:
            self.run(client.__aenter__())
        except BaseException:
            self._stop()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return or raise the result of `work`; cancel it if this thread is interrupted."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` in the background; cancelling the returned future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

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
                self._loop.call_soon_threadsafe(room.release)
                if more:
                    yield piece
                elif piece is None:
                    return
                else:
                    raise piece
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel all running work and stop the loop; may be called twice."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self.run(self._wind_up())
        self._stop()

    async def _wind_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.__aexit__(None, None, None)
        await self._loop.shutdown_asyncgens()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
