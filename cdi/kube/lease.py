"""One leader among several processes, by a Lease of coordination.k8s.io/v1.

The protocol is that of client-go's ``leaderelection``, so both can share a Lease.  Clocks of machines are not compared:
a candidate takes a Lease over when it has *seen* it unchanged for the Lease's own duration, by its own monotonic clock,
and a leader gives up when it could not renew for `deadline` seconds, counted from before the last renewal was sent.
(`kubernetes.aio.leaderelection` goes by the wall clock, does not bound a renewal that hangs, and releases nothing.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from cdi.api.errors import AlreadyExists, CdiError, Conflict, NotFound
from cdi.kube.resources import LEASES, Object, Resource

LOG = logging.getLogger(__name__)
_RELEASE = 5.0
"""Seconds that letting the Lease go may take at the end."""


class Leases(Protocol):
    """The part of `cdi.kube.client.Client` that is used here."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object: ...

    async def create(self, resource: Resource, body: Object) -> Object: ...

    async def update(self, resource: Resource, body: Object) -> Object: ...


class _LostError(Exception):
    """The Lease is somebody else's."""


class Leadership:
    """A candidate.  One `run` at a time."""

    def __init__(
        self,
        client: Leases,
        namespace: str,
        name: str,
        *,
        identity: str | None = None,
        duration: float = 15.0,
        deadline: float = 10.0,
        retry: float = 2.0,
    ) -> None:
        """Seconds: how long a Lease holds, after how long a leader gives up, and the pause between two tries."""
        if not 0 < retry < deadline < duration or duration < 1:
            raise ValueError("retry < deadline < duration is what keeps two from leading at once")
        self.identity = identity or f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        self.leading = False
        self._client = client
        self._namespace, self._name = namespace, name
        self._duration, self._deadline, self._retry = duration, deadline, retry
        self._lease: Object = {}
        """As it was last seen."""
        self._seen = 0.0
        """When it was first seen so, by the loop's clock."""
        self._renewed = 0.0
        """When the last renewal that succeeded was sent."""

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` while this process leads; returns when it has ended, raises what it raised.

        When leadership is lost, `work` is cancelled, and begun anew when it is won again.  When this is cancelled,
        `work` is cancelled too, the Lease is renewed until it has ended, and then let go for the next.
        """
        while True:
            await self._acquire()
            LOG.info("%s leads", self.identity)
            if await self._lead(work):
                return
            LOG.warning("%s leads no longer", self.identity)

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Whether `work` ended by itself; False where leadership was lost."""
        self.leading = True
        task = asyncio.ensure_future(work())
        renewal = asyncio.create_task(self._renew())
        try:
            await asyncio.wait({task, renewal}, return_when=asyncio.FIRST_COMPLETED)
            ended = task.done()
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({task})
            lost = renewal.done()
            renewal.cancel()
            await asyncio.wait({renewal})
            self.leading = False
            if not lost:
                await self._release()
        if lost and not renewal.cancelled() and (error := renewal.exception()) is not None:
            raise error
        if ended:
            task.result()
        elif not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("what was cancelled failed", exc_info=error)
        return ended

    # --- winning ------------------------------------------------------------------------------------------------

    async def _acquire(self) -> None:
        told = ""
        while True:
            try:
                if await self._try():
                    return
                text = f"{self._spec('holderIdentity')} leads"
            except CdiError as error:
                text = f"no leader can be elected: {error.message}"
            if text != told:
                LOG.info("%s", text)
                told = text
            # Apart by chance, or candidates that began together would meet at every try.
            await asyncio.sleep(self._retry * random.uniform(1.0, 1.2))  # noqa: S311  spreads load

    async def _try(self) -> bool:
        """One look, and the Lease where it is free.  Raises `CdiError`."""
        now = asyncio.get_running_loop().time()
        try:
            found = await self._client.get(LEASES, self._namespace, self._name)
        except NotFound:
            body = {
                "apiVersion": LEASES.api_version,
                "kind": LEASES.kind,
                "metadata": {"name": self._name, "namespace": self._namespace},
                "spec": self._claim(transitions=0),
            }
            return await self._take(self._client.create(LEASES, body), now)
        self._see(found)
        if not self._free():
            return False
        holder = self._spec("holderIdentity")
        transitions = int(self._spec("leaseTransitions") or 0) + (holder != self.identity)
        body = {**found, "spec": {**(found.get("spec") or {}), **self._claim(transitions=transitions)}}
        return await self._take(self._client.update(LEASES, body), now)

    def _see(self, lease: Object) -> None:
        if _state(lease) != _state(self._lease):
            # When the answer came, not when it was asked for: later is the safe side.
            self._seen = asyncio.get_running_loop().time()
        self._lease = lease

    def _free(self) -> bool:
        holder = self._spec("holderIdentity")
        if not holder or holder == self.identity:
            return True
        try:
            lasts = float(self._spec("leaseDurationSeconds") or 0)
        except (TypeError, ValueError):
            lasts = 0.0
        return asyncio.get_running_loop().time() >= self._seen + max(lasts, 1.0)

    async def _take(self, written: Awaitable[Object], now: float) -> bool:
        try:
            self._see(await written)
        except (AlreadyExists, Conflict, NotFound):
            return False  # somebody was faster
        self._renewed = now
        return True

    # --- keeping ------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Returns when leadership is lost."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(self._retry, max(0.0, self._renewed + self._deadline - clock())))
            try:
                async with asyncio.timeout_at(self._renewed + self._deadline):
                    await self._renew_once()
            except TimeoutError:
                LOG.warning("the lease could not be renewed in time")
                return
            except _LostError:
                LOG.warning("the lease was taken by %s", self._spec("holderIdentity"))
                return
            except CdiError as error:
                LOG.warning("the lease could not be renewed: %s", error.message)

    async def _renew_once(self) -> None:
        """Raises `CdiError` for what may pass, `_LostError` where it is somebody else's."""
        now = asyncio.get_running_loop().time()
        try:
            self._see(await self._client.update(LEASES, self._renewal()))
        except (Conflict, NotFound):
            # Somebody touched or deleted it, or our own last renewal was carried out and its answer got lost.
            try:
                self._see(await self._client.get(LEASES, self._namespace, self._name))
            except NotFound as error:
                raise _LostError from error
            if self._spec("holderIdentity") != self.identity:
                raise _LostError from None
            self._see(await self._client.update(LEASES, self._renewal()))
        self._renewed = now

    async def _release(self) -> None:
        body = self._renewal()
        body["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        with contextlib.suppress(CdiError, TimeoutError):  # it expires by itself
            async with asyncio.timeout(_RELEASE):
                self._lease = await self._client.update(LEASES, body)

    # --- what is written ----------------------------------------------------------------------------------------

    def _spec(self, name: str) -> Any:
        return (self._lease.get("spec") or {}).get(name)

    def _claim(self, *, transitions: int) -> Object:
        stamp = _micro_time()
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": round(self._duration),
            "acquireTime": stamp,
            "renewTime": stamp,
            "leaseTransitions": transitions,
        }

    def _renewal(self) -> Object:
        return {**self._lease, "spec": {**(self._lease.get("spec") or {}), "renewTime": _micro_time()}}


def _state(lease: Object) -> object:
    """What a holder changes with every renewal."""
    metadata = lease.get("metadata") or {}
    return metadata.get("uid"), lease.get("spec")


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
