"""Leader election among several processes with a Lease of coordination.k8s.io/v1.

The protocol is that of client-go's ``leaderelection``, so both can share a Lease. Clocks of machines are not compared:
a candidate acquires a Lease once it has *observed* it unchanged for the Lease's own duration by its own monotonic
clock, and a leader resigns if it could not renew for `deadline` seconds, counted from before the last renewal was sent.
(`kubernetes.aio.leaderelection` uses the wall clock, does not bound a renewal that hangs, and never releases.)
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
from cdi.api.kinds import LEASES, Object, Resource

LOG = logging.getLogger(__name__)
_RELEASE = 5.0
"""Timeout for releasing the Lease at the end, in seconds."""


class Leases(Protocol):
    """Part of `cdi.kube.client.Client` that is used here."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object: ...

    async def create(self, resource: Resource, body: Object) -> Object: ...

    async def update(self, resource: Resource, body: Object) -> Object: ...


class _LostError(Exception):
    """Another candidate holds the Lease."""


class LeaderElector:
    """Candidate for leadership; one `run` at a time."""

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
        """Configure the election; all times are in seconds.

        A Lease is valid for `duration` without renewal. The leader resigns `deadline` after its last successful
        renewal; `retry` is the interval between two attempts.
        """
        if not 0 < retry < deadline < duration or duration < 1:
            raise ValueError("leader election requires retry < deadline < duration")
        self.identity = identity or f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        self._client = client
        self._namespace, self._name = namespace, name
        self._duration, self._deadline, self._retry = duration, deadline, retry
        self._lease: Object = {}
        """The Lease as last observed."""
        self._seen = 0.0
        """Loop time at which this state was first observed."""
        self._renewed = 0.0
        """Loop time at which the last successful renewal was sent."""

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` while this process leads; return when it ends, raise what it raises.

        When leadership is lost, `work` is cancelled; it restarts when leadership is regained. When this method is
        cancelled, `work` is cancelled too, and the Lease is renewed until it has ended and then released.
        """
        while True:
            await self._acquire()
            LOG.info("%s became leader", self.identity)
            if await self._lead(work):
                return
            LOG.warning("%s stopped leading", self.identity)

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Return True if `work` ended, False if leadership was lost."""
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
            if not lost:
                await self._release()
        if lost and not renewal.cancelled() and (error := renewal.exception()) is not None:
            raise error
        if ended:
            task.result()
        elif not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("the cancelled work failed", exc_info=error)
        return ended

    # --- winning ------------------------------------------------------------------------------------------------

    async def _acquire(self) -> None:
        previous = ""
        while True:
            try:
                if await self._try():
                    return
                text = f"{self._spec('holderIdentity')} is the leader"
            except CdiError as error:
                text = f"leader election failed, retrying: {error.message}"
            if text != previous:
                LOG.info("%s", text)
                previous = text
            # Jitter: candidates that started together would otherwise collide at every attempt.
            await asyncio.sleep(self._retry * random.uniform(1.0, 1.2))  # noqa: S311  spreads load

    async def _try(self) -> bool:
        """Observe the Lease once and acquire it if it is free; may raise `CdiError`."""
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
            return await self._acquire_or_renew(self._client.create(LEASES, body), now)
        self._observe(found)
        if not self._free():
            return False
        holder = self._spec("holderIdentity")
        transitions = int(self._spec("leaseTransitions") or 0) + (holder != self.identity)
        body = {**found, "spec": {**(found.get("spec") or {}), **self._claim(transitions=transitions)}}
        return await self._acquire_or_renew(self._client.update(LEASES, body), now)

    def _observe(self, lease: Object) -> None:
        if _state(lease) != _state(self._lease):
            # The time of the response, not of the request: later is the safe side.
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

    async def _acquire_or_renew(self, written: Awaitable[Object], now: float) -> bool:
        try:
            self._observe(await written)
        except (AlreadyExists, Conflict, NotFound):
            return False  # another candidate was faster
        self._renewed = now
        return True

    # --- keeping ------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Renew the Lease periodically; return when leadership is lost."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(self._retry, max(0.0, self._renewed + self._deadline - clock())))
            try:
                async with asyncio.timeout_at(self._renewed + self._deadline):
                    await self._renew_once()
            except TimeoutError:
                LOG.warning("failed to renew the lease in time")
                return
            except _LostError:
                LOG.warning("the lease was acquired by %s", self._spec("holderIdentity"))
                return
            except CdiError as error:
                LOG.warning("failed to renew the lease, retrying: %s", error.message)

    async def _renew_once(self) -> None:
        """Renew the Lease; raise `CdiError` for transient failures, `_LostError` if another candidate holds it."""
        now = asyncio.get_running_loop().time()
        try:
            self._observe(await self._client.update(LEASES, self._renewal()))
        except (Conflict, NotFound):
            # It was modified or deleted, or our last renewal succeeded and its response was lost.
            try:
                self._observe(await self._client.get(LEASES, self._namespace, self._name))
            except NotFound as error:
                raise _LostError from error
            if self._spec("holderIdentity") != self.identity:
                raise _LostError from None
            self._observe(await self._client.update(LEASES, self._renewal()))
        self._renewed = now

    async def _release(self) -> None:
        body = self._renewal()
        body["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        with contextlib.suppress(CdiError, TimeoutError):  # it expires anyway
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
    """Return what a holder changes with every renewal."""
    metadata = lease.get("metadata") or {}
    return metadata.get("uid"), lease.get("spec")


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
