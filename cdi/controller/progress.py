"""Progress polling: running worker pods are asked about once per second over HTTPS.

A worker has no API credentials, so it cannot push its progress. It serves a self-signed certificate, so its report is
only trusted for display: it is bounded in size, time and every number, and never makes an import count as complete.

With more pods the interval grows, so that the total rate is limited (`RATE`). A reconcile never waits for a response;
it uses the latest known report.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Never

import aiohttp

from cdi.api.decode import decode
from cdi.api.job import Failure, Progress
from cdi.api.printable import printable
from cdi.controller.workqueue import WorkQueue
from cdi.logs import fields

POLL_INTERVAL = 1.0
"""Polling interval of one pod in seconds, also before the first request: most small imports end before that."""
RATE = 20.0
"""Maximum number of requests per second to all pods together."""
MAX_CONCURRENT = 16
REQUEST_TIMEOUT = 2.0
"""Timeout of one request in seconds."""
JOURNAL_INTERVAL = 10.0
"""Minimum interval in seconds between two stored journals of one pod."""
_MAX_RESPONSE = 96 * 1024
_MAX_JOURNAL = 40 * 1024
"""Maximum size of a journal, which is also the limit for the next attempt's pod (`cdi.reconcile.pods.builder`)."""
_MAX_NOTE = 256
_MAX_MESSAGE = 1024

log = logging.getLogger("cdi.progress")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A running worker pod."""

    uid: str
    namespace: str
    name: str
    address: str
    """``host:port`` of its HTTPS server."""
    keeps_journal: bool = False
    """Whether its journal is lost with the pod and must be stored elsewhere."""

    @property
    def place(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A worker's response."""

    progress: Progress
    journal: str | None = None
    upload: Upload | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Upload state that an upload server reports."""

    state: str
    """waiting, receiving, finishing or done."""
    failure: Failure | None = None
    """Why it rejected the last upload."""


FetchProgress = Callable[[str], Awaitable[bytes]]
"""Function that returns the body of ``GET https://<address>/progress``.

It raises `OSError`, `ValueError` or `aiohttp.ClientError`.
"""


class ProgressPoller:
    """Latest progress of every running worker pod."""

    def __init__(
        self,
        *,
        on_progress: Callable[[Target], None],
        save_journal: Callable[[Target, str], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
        every: float = POLL_INTERVAL,
        rate: float = RATE,
    ) -> None:
        """Start without pods.

        Args:
            on_progress: Called with a pod whose report has changed.
            save_journal: Called to store a pod's journal; it may raise any exception.
            clock: Called for monotonic time in seconds.
            every: Polling interval of one pod in seconds.
            rate: Maximum number of requests per second.

        """
        self._on_progress = on_progress
        self._keep = save_journal
        self._clock = clock
        self._every = every
        self._rate = rate
        self._queue: WorkQueue[str] = WorkQueue(clock=clock, base=2 * every)
        self._targets: dict[str, Target] = {}
        self._newest: dict[str, Progress] = {}
        self._rejected_uploads: dict[str, Failure] = {}
        self._journals: dict[str, tuple[float, str]] = {}

    def of(self, uid: str) -> Progress | None:
        """Return the latest progress of the pod with this UID, which is kept until `forget` is called."""
        return self._newest.get(uid)

    def last_rejected_upload(self, uid: str) -> Failure | None:
        """Return why this pod rejected the last upload; None if it did not, or another upload is in progress."""
        return self._rejected_uploads.get(uid)

    def newest(self) -> Mapping[str, Progress]:
        """Return the latest progress by UID of the pod."""
        return self._newest

    def track(self, target: Target) -> None:
        """Start polling a pod."""
        if self._targets.get(target.uid) != target:
            new = target.uid not in self._targets
            self._targets[target.uid] = target
            if new:
                self._queue.add(target.uid, self._every)

    def untrack(self, uid: str) -> None:
        """Stop polling a pod; its latest progress is kept."""
        self._targets.pop(uid, None)

    def forget(self, uid: str) -> None:
        """Discard everything about a deleted pod."""
        self.untrack(uid)
        self._newest.pop(uid, None)
        self._rejected_uploads.pop(uid, None)
        self._journals.pop(uid, None)

    async def run(self, ask: FetchProgress) -> Never:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(MAX_CONCURRENT):
                group.create_task(self._work(ask))
        raise AssertionError("no worker ends")

    async def _work(self, ask: FetchProgress) -> Never:
        while True:
            uid = await self._queue.get()
            try:
                target = self._targets.get(uid)
                if target is not None:
                    await self._look(target, ask)
            finally:
                self._queue.done(uid)

    async def _look(self, target: Target, ask: FetchProgress) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                report = parse_report(await ask(target.address))
        except (OSError, ValueError, aiohttp.ClientError) as error:  # TimeoutError is an OSError
            pause = self._queue.retry(target.uid)
            reason = str(error) or type(error).__name__
            log.debug(
                "worker reports no progress", extra=fields(pod=target.place, reason=reason, pause=round(pause, 1))
            )
            return
        self._queue.forget(target.uid)
        self._queue.add(target.uid, max(self._every, len(self._targets) / self._rate))
        if target.uid not in self._targets:
            return  # it ended during the request
        upload = report.upload
        refused = upload.failure if upload is not None and upload.state == "waiting" else None
        if (self._newest.get(target.uid), self._rejected_uploads.get(target.uid)) != (report.progress, refused):
            self._newest[target.uid] = report.progress
            if refused is None:
                self._rejected_uploads.pop(target.uid, None)
            else:
                self._rejected_uploads[target.uid] = refused
            self._on_progress(target)
        if target.keeps_journal and report.journal is not None:
            await self._store(target, report.journal)

    async def _store(self, target: Target, journal: str) -> None:
        moment, known = self._journals.get(target.uid, (-math.inf, ""))
        now = self._clock()
        if journal == known or now - moment < JOURNAL_INTERVAL:
            return
        self._journals[target.uid] = (now, journal)
        try:
            await self._keep(target, journal)
        except Exception as error:  # noqa: BLE001 (the next journal follows soon; a lost one only costs time)
            log.warning("cannot save a worker's journal", extra=fields(pod=target.place, reason=error))


def parse_report(body: bytes) -> Report:
    """Parse and sanitize a worker's response.

    Raises:
        ValueError: It is not a report of a worker.

    """
    report = decode(Report, body)
    progress = report.progress
    if (
        min(progress.done, progress.total or 0, progress.written, progress.fetched, progress.rate, progress.eta or 0)
        < 0
    ):
        raise ValueError("a negative number")
    note = printable(progress.note, _MAX_NOTE, substitute="?")
    journal = report.journal
    if journal is not None and not 0 < len(journal) <= _MAX_JOURNAL:
        journal = None
    upload = report.upload
    if upload is not None:
        upload = replace(upload, failure=_sanitized(upload.failure))
    return Report(
        progress=replace(progress, note=note, failure=_sanitized(progress.failure)), journal=journal, upload=upload
    )


def _sanitized(failure: Failure | None) -> Failure | None:
    """Bound a failure whose text may come from a server or an image: code to one word, message to one line."""
    if failure is None:
        return None
    code = "".join(c for c in failure.code[:64] if c.isascii() and c.isalnum()) or "Unknown"
    return replace(failure, code=code, message=printable(failure.message, _MAX_MESSAGE, substitute="?"))


@contextlib.asynccontextmanager
async def progress_client() -> AsyncIterator[FetchProgress]:
    """Yield an `FetchProgress` that uses persistent connections."""
    connector = aiohttp.TCPConnector(
        # The worker's certificate is self-signed and created at its start, so there is nothing to verify it against.
        ssl=False,
        limit=4 * MAX_CONCURRENT,
        keepalive_timeout=30.0,
        use_dns_cache=False,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT),
    ) as session:

        async def ask(address: str) -> bytes:
            async with session.get(f"https://{address}/progress", allow_redirects=False) as answer:
                if answer.status != 200:
                    raise ValueError(f"status {answer.status}")
                body = b""
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > _MAX_RESPONSE:
                        raise ValueError(f"more than {_MAX_RESPONSE} bytes")
                return body

        yield ask
