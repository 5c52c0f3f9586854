"""The API of a cluster for those who block: its client lives in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from cdi.api.errors import NotFound
from cdi.kube.client import Client
from cdi.kube.resources import Object, Resource

T = TypeVar("T")
_AHEAD = 256
"""Pieces of a stream that are kept for whoever reads them."""


class Calls:
    """One client; methods may be called from any thread."""

    def __init__(self, client: Client) -> None:
        """Connects; raises `ClusterConfigInvalid` and its kin."""
        self.client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster", daemon=True)
        self._thread.start()
        try:
            self.run(client.__aenter__())
        except BaseException:
            self._stop()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What it gives or raises; it is cancelled where this thread is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def find(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """None where there is no such object."""
        try:
            return self.run(self.client.get(resource, namespace, name))
        except NotFound:
            return None

    def stream(self, source: AsyncIterator[T]) -> Iterator[T]:
        """What comes, as it comes; `source` is closed with the iterator."""
        pieces: queue.Queue[tuple[bool, Any]] = queue.Queue(_AHEAD)
        room = asyncio.Semaphore(_AHEAD)

        async def pump() -> None:
            try:
                async for piece in source:
                    await room.acquire()
                    pieces.put_nowait((True, piece))
            except Exception as error:  # noqa: BLE001  raised again by whoever reads
                await room.acquire()
                pieces.put_nowait((False, error))
            else:
                await room.acquire()
                pieces.put_nowait((False, None))

        future = asyncio.run_coroutine_threadsafe(pump(), self._loop)
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

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run in the background until it ends or is cancelled."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Also ends what runs in the background."""
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
