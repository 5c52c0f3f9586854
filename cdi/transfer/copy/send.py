"""A volume to the worker that fills another with it: `CopySourceJob` → `Outcome`.

The target may not be there yet, go away, and come back: each time the source connects anew and goes on from where the
target has it.  It gives up when it got no further for the job's patience.
"""

from __future__ import annotations

import random
import socket
import ssl
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cdi.api.copy import CopySourceJob
from cdi.api.errors import (
    CdiError,
    InternalError,
    Interrupted,
    InvalidManifest,
    PeerUnreachable,
    PeerUntrusted,
    Retry,
    SourceChanged,
    SourceError,
)
from cdi.api.job import Outcome
from cdi.transfer.control import Control
from cdi.transfer.copy import frames
from cdi.transfer.copy.digest import written
from cdi.transfer.copy.frames import Fail, Hello
from cdi.transfer.copy.line import Line
from cdi.transfer.copy.origin import Origin
from cdi.transfer.copy.sender import Conversation, DiskSender
from cdi.transfer.copy.tls import client_context
from cdi.transfer.result import Result
from cdi.transfer.run import failure_of

CONNECT_SECONDS = 10.0
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
PATH = "copy-send"


def send(job: CopySourceJob, control: Control) -> Outcome:
    """Carry `job` out.  Raises nothing: a failure is part of the outcome.

    Of the outcome, `fetched` are the bytes that were read of the source volume, `written` those that were sent.
    """
    began = time.monotonic()
    result = Result(job.id, path=PATH, format="archive" if job.content_type == "archive" else "raw")
    try:
        _Source(job, control, result).run()
    except CdiError as error:
        result.failure = failure_of(error)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a defect is reported, not lost
        traceback.print_exc()
        result.failure = failure_of(InternalError(f"{type(error).__name__}: {error}"))
    control.meter.phase = "done"
    result.seconds = round(time.monotonic() - began, 3)
    return result.outcome()


class _Source:
    def __init__(self, job: CopySourceJob, control: Control, result: Result) -> None:
        self._job = job
        self._control = control
        self._result = result
        self._host, self._port = _parsed(job.address)
        self._fresh = False
        self._furthest = -1

    def run(self) -> None:
        """Raises `CdiError`s."""
        context = client_context(self._job.tls)
        self._control.written = lambda: self._result.written
        failures = changes = 0
        until = time.monotonic() + self._job.patience
        while True:
            try:
                self._attempt(context)
                return
            except SourceChanged as error:
                # The target begins again with what is there now.
                self._fresh = True
                changes += 1
                if changes > self._job.policy.retries:
                    raise
                cause: CdiError = error
                self._result.warn(f"{error.what}; started over")
            except CdiError as error:
                if error.retry is not Retry.BACKOFF or isinstance(error, Interrupted):
                    raise
                cause = error
            if self._moved():
                failures, until = 0, time.monotonic() + self._job.patience
            failures += 1
            if time.monotonic() > until:
                raise cause
            self._pause(cause, failures)

    def _moved(self) -> bool:
        """Whether the last connection brought the target further than all before it."""
        meter = self._control.meter
        further = meter.done > self._furthest
        self._furthest = max(self._furthest, meter.done)
        return further

    def _pause(self, cause: CdiError, failures: int) -> None:
        seconds = _PAUSES[min(failures, len(_PAUSES)) - 1] * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
        self._control.meter.note = f"waiting {seconds:.0f} s: {cause.code}: {cause.what}"
        if self._control.cancelled.wait(seconds):
            raise Interrupted("the clone was stopped")

    def _check(self) -> None:
        if self._control.cancelled.is_set():
            raise Interrupted("the clone was stopped")

    # --- one connection -----------------------------------------------------------------------------------------

    def _attempt(self, context: ssl.SSLContext) -> None:
        self._check()
        if self._job.content_type == "archive":
            from cdi.transfer.copy.archive import ArchiveSender

            # Before anybody is called: a volume that cannot be sent is no use to a target.
            archive = ArchiveSender(self._job.path, self._control)
            hello = Hello(
                job=self._job.id, content="archive", size=archive.size, data=archive.size, validator="", fresh=True
            )
            with self._connected(context) as line:
                self._result.digest = written(self._told(line, lambda talk: archive.run(talk, hello)))
            self._result.virtual_size = archive.size
            return
        with Origin(self._job.path) as origin:
            hello = Hello(
                job=self._job.id,
                content="kubevirt",
                size=origin.size,
                data=origin.allocated,
                validator=origin.validator(self._job.identity),
                fresh=self._fresh,
            )
            self._result.virtual_size = origin.size
            self._result.validator = hello.validator
            sender = DiskSender(origin, self._control)
            with self._connected(context) as line:
                try:
                    digest = self._told(line, lambda talk: sender.run(talk, hello, proven=origin.proven))
                finally:
                    self._result.fetched += sender.fetched
                    self._result.resumed_at = sender.resumed_at
            self._result.digest = written(digest)

    def _told(self, line: Line, act: Callable[[Conversation], bytes]) -> bytes:
        try:
            return act(Conversation(line, self._control))
        except SourceError as error:
            # The target then knows whether there is anything to wait for.
            line.part(frames.document(Fail.of(error)))
            raise

    @contextmanager
    def _connected(self, context: ssl.SSLContext) -> Iterator[Line]:
        tls = _connect(context, self._host, self._port, self._job.server_name or self._host)
        line = Line(tls, self._job.address, stall=self._job.policy.stall_timeout, check=self._check)
        before = self._result.written
        self._control.written = lambda: before + line.sent
        try:
            yield line
        finally:
            self._result.written = before + line.sent
            line.close()


def _connect(context: ssl.SSLContext, host: str, port: int, name: str) -> ssl.SSLSocket:
    where = f"{host}:{port}"
    try:
        connection = socket.create_connection((host, port), CONNECT_SECONDS)
    except OSError as error:
        raise PeerUnreachable(f"no connection: {error.strerror or type(error).__name__}", where=where) from error
    try:
        return context.wrap_socket(connection, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        connection.close()
        raise PeerUntrusted(f"the target's certificate: {error.verify_message}", where=where) from error
    except OSError as error:
        connection.close()
        text = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise PeerUnreachable(f"no TLS connection: {text}", where=where) from error


def _parsed(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise InvalidManifest("the address of a clone's target is host:port", where=address)
    return host, int(port)
