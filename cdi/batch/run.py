"""Execution of a batch of imports with limited concurrency.

    check ─► apply supporting objects ─► (locked: query every source) ─► start, observe, finish ─► lock file

The imports themselves are run by a supervisor, like those of any DataVolume. A batch that is killed loses nothing: the
next one continues from their current state.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from cdi.api.errors import CdiError, InvalidManifest, LockMismatch, NotFound, UsageError
from cdi.api.job import Failure
from cdi.api.phases import Phase
from cdi.batch.background import map_in_background, run_in_background
from cdi.batch.existing import ExistingState, Facts, conflict, facts_of, not_as_pinned, pin_mismatch
from cdi.batch.importing import Importing, Kept, Starter
from cdi.batch.lockfile import NAME, Entry, Lock, check_writable, record
from cdi.batch.report import Report, Result, Verdict
from cdi.batch.tracking import Finished, Update, track
from cdi.client.backend import Advance, Backend, ProgressWatch
from cdi.explain.item import Batch, Item
from cdi.explain.local_overlay import LocalOverlay
from cdi.explain.prober import Prober, ReferenceReader, SourceVersion
from cdi.local.backend import LocalBackend
from cdi.store.base import Key

_POLL_INTERVAL = 0.1
_MAX_PROBLEMS = 50
_SHUTDOWN_TIMEOUT = 2.0
"""Seconds to wait at the end of the batch for imports that are just being started."""


def default_jobs() -> int:
    """Return the default concurrency, 2 to 4 depending on the number of processors."""
    return max(2, min(4, len(os.sched_getaffinity(0))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a batch."""

    jobs: int = field(default_factory=default_jobs)
    """Number of concurrent imports."""
    keep_going: bool = False
    """Start all imports even if some fail; otherwise none is started after the first failure."""
    locked: bool = False
    """Import only what the lock file pins."""
    update: bool = False
    """Replace volumes that differ from the batch, the source or the lock file."""
    lockfile: Path | None = None
    """The lock file; None means ``cdi.lock`` next to the batch."""
    timeout: float | None = None
    """Seconds for the whole batch."""


class Audience(Protocol):
    """Observer of a batch; called by the thread that runs it."""

    def began(self, item: Item) -> None: ...

    def update(self, item: Item, phase: str, progress: Advance | None, note: str) -> None: ...

    def ended(self, item: Item, result: Result) -> None: ...


@dataclass(slots=True, kw_only=True)
class _Live:
    """An item that is being processed."""

    item: Item
    began: float
    starting: Future[Kept | Importing]
    importing: Importing | None = None


def run_batch(
    backend: Backend,
    batch: Batch,
    options: Options,
    audience: Audience,
    eyes: Callable[[], ReferenceReader] | None = None,
) -> Report:
    """Import all items of `batch`.

    Failures of images are part of the report, as are imports that still run after Ctrl-C.

    Args:
        backend: The backend.
        batch: The items.
        options: The options.
        audience: The observer.
        eyes: Returns the reader of the objects that sources refer to, called once those are applied; None takes the
            home of `backend`.

    Returns:
        The results.

    Raises:
        InvalidManifest: The batch cannot be run; the message has all problems, and nothing was started.
        LockMismatch: The batch is locked, and there is no lock file.
        TargetPermission: The lock file cannot be written.
    """
    if eyes is None:
        assert isinstance(backend, LocalBackend)
        eyes = partial(LocalOverlay, backend.home)
    return _Run(backend, batch, options, audience, eyes).run()


class _Run:
    def __init__(
        self, backend: Backend, batch: Batch, options: Options, audience: Audience, eyes: Callable[[], ReferenceReader]
    ) -> None:
        self._backend = backend
        self._eyes = eyes
        self._batch = batch
        self._options = options
        self._audience = audience
        self._made = {item.claim: item for item in batch.items}
        self._lockfile = options.lockfile or batch.directory / NAME
        self._known: Mapping[str, Entry] = {}
        """The content of the lock file."""
        self._pins: Mapping[str, Entry] = {}
        """The content of the lock file if the batch is locked, else empty."""
        self._offers: dict[Key, SourceVersion | None] = {}
        self._results: dict[Key, Result] = {}
        self._waiting: deque[Item] = deque()
        self._running: list[_Live] = []
        self._stopped = threading.Event()
        self._lock_changed = False
        self._unwritten: dict[str, Entry] = {}
        self._began = time.monotonic()
        self._deadline = None if options.timeout is None else self._began + options.timeout
        if options.jobs < 1:
            raise UsageError("at least one import runs at a time", where="--jobs")

    _courses: ProgressWatch

    def run(self) -> Report:
        interrupted = timed_out = False
        self._open_lock()
        standings = {item.key: ExistingState.of(self._backend, item) for item in self._batch.items}
        self._refuse_clashes(standings)
        if self._batch.others:
            self._backend.apply(self._batch.others)
        prober = Prober(self._eyes())
        self._starter = Starter(self._backend, prober, self._options.update, self._pins, self._offers, self._stopped)
        try:
            self._refuse_missing(prober)
            if not self._options.locked or self._compare(prober, standings):
                self._waiting.extend(item for item in self._batch.items if item.key not in self._results)
            if isinstance(self._backend, LocalBackend) and any(
                standings[item.key].phase is not Phase.SUCCEEDED for item in self._waiting
            ):
                # If CDI_HOME cannot be written, every image would fail because of it, one after the other.
                self._backend.start_supervisor()
            with self._backend.courses([item.key for item in self._batch.items]) as self._courses:
                timed_out = self._loop()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self._stopped.set()
            prober.cancel()
        return self._report(interrupted=interrupted, timed_out=timed_out)

    # --- preparation ----------------------------------------------------------------------------------------------

    def _open_lock(self) -> None:
        lock = Lock.read(self._lockfile)
        self._known = lock.images if lock is not None else {}
        if not self._options.locked:
            check_writable(self._lockfile)
            return
        if lock is None:
            raise LockMismatch(
                "there is no lock file", where=str(self._lockfile), remedy="run cdi batch without --locked to write it"
            )
        self._pins = lock.images

    def _refuse_clashes(self, standings: Mapping[Key, ExistingState]) -> None:
        problems = []
        for item in self._batch.items:
            if item.path is not None and not isinstance(self._backend, LocalBackend):
                problems.append(f"{item.place}: a cluster cannot fetch {item.path} from this machine")
            reason = conflict(item, standings[item.key], update=self._options.update)
            if reason is not None:
                problems.append(f"{item.place}: {reason}")
        _refuse(problems)

    def _refuse_missing(self, prober: Prober) -> None:
        """Reject items whose source or clone refers to a missing object, since they would wait forever."""
        problems = []
        made = {*self._made, *map(Key.of_object, self._batch.others)}
        for item in self._batch.items:
            try:
                prober.check(item)
            except NotFound as error:
                problems.append(f"{item.place}: {error.what}")
            except CdiError:
                pass  # reported as the image's failure when it is imported
            if item.source is not None and item.source not in made:
                try:
                    self._backend.get("pvc", item.source.namespace, item.source.name)
                except NotFound:
                    problems.append(f"{item.place}: there is no {item.source} to be cloned")
        _refuse(problems)

    # --- against the lock file --------------------------------------------------------------------------------------

    def _compare(self, prober: Prober, standings: Mapping[Key, ExistingState]) -> bool:
        """Query all sources; return False, and start nothing, if an image differs from its pin."""
        pinned = [item for item in self._batch.items if item.pinnable]
        mismatches: dict[Key, str] = {}
        failures: dict[Key, CdiError] = {}
        for item, outcome in map_in_background(lambda item: self._mismatch(prober, item, standings[item.key]), pinned):
            if isinstance(outcome, CdiError):
                failures[item.key] = outcome
            elif outcome is not None:
                mismatches[item.key] = outcome
        for item in pinned:
            if item.key in mismatches:
                error = LockMismatch(mismatches[item.key], where=item.label)
                self._end(item, self._result(item, "refused", failure=error))
            elif item.key in failures:
                self._end(item, self._result(item, "failed", failure=failures[item.key]))
        return not mismatches

    def _mismatch(self, prober: Prober, item: Item, standing: ExistingState) -> str | None:
        pin = self._pins.get(item.label)
        found = not_as_pinned(item, pin, None)
        if found is not None or pin is None:
            return found
        offer = self._offers[item.key] = prober.offer(item)
        found = not_as_pinned(item, pin, offer)
        if found is not None and item.path is not None and pin.digest is not None:
            # The file may be a copy: it counts as the same if its content is the same.
            same = offer is not None and offer.length == pin.length and str(prober.digest(item)) == pin.digest
            if same:
                found = None
        if found is None and standing.phase == "Succeeded" and standing.claim is not None and not self._options.update:
            found = pin_mismatch(item, facts_of(self._backend, item, standing.claim), pin)
        return found

    # --- main loop --------------------------------------------------------------------------------------------------

    def _loop(self) -> bool:
        """Process all items; return True if the timeout has expired."""
        while self._waiting or self._running:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return True
            self._begin()
            for live in list(self._running):
                self._look(live)
            if self._running:
                self._courses.pause(_POLL_INTERVAL)
        return False

    def _begin(self) -> None:
        if not self._options.keep_going and any(r.verdict == "failed" for r in self._results.values()):
            while self._waiting:
                rest = self._waiting.popleft()
                self._end(rest, self._result(rest, "skipped", note="not started after another image failed"))
        while self._waiting and len(self._running) < self._options.jobs:
            if (item := self._next()) is None:
                return
            self._waiting.remove(item)
            self._audience.began(item)
            self._running.append(
                _Live(item=item, began=time.monotonic(), starting=run_in_background(partial(self._starter.start, item)))
            )

    def _next(self) -> Item | None:
        """Return the first item that waits for no other; skip those whose source was not imported."""
        for item in list(self._waiting):
            source = self._made.get(item.source) if item.source is not None else None
            if source is None:
                return item
            result = self._results.get(source.key)
            if result is None:
                continue
            if result.verdict in ("imported", "unchanged", "outdated"):
                return item
            self._waiting.remove(item)
            self._end(item, self._result(item, "skipped", note=f"its source {source.label} does not exist"))
        return None

    def _look(self, live: _Live) -> None:
        item = live.item
        try:
            if live.importing is None:
                if not live.starting.done():
                    if (asking := self._starter.progress(item)) is not None:
                        self._audience.update(item, "Preparing", asking, "")
                    return
                started = live.starting.result()
                if isinstance(started, Kept):
                    self._done(live, "outdated" if started.source_changed else "unchanged", started.note)
                    return
                live.importing = started
            found = track(self._backend, self._courses, item, live.importing)
            match found:
                case Update():
                    self._audience.update(item, found.phase, found.progress, found.note)
                case Finished():
                    self._ended(live, found)
        except CdiError as error:
            self._finish(live, self._result(item, "failed", failure=error, live=live))

    def _ended(self, live: _Live, end: Finished) -> None:
        item = live.item
        if end.failure is not None:
            self._finish(live, replace(self._result(item, "failed", live=live, note=end.note), failure=end.failure))
            return
        pin = self._pins.get(item.label) if self._options.locked and item.pinnable else None
        if pin is not None:
            standing = ExistingState.of(self._backend, item)
            unlike = pin_mismatch(item, facts_of(self._backend, item, standing.claim), pin)
            if unlike is not None:
                # It was started earlier by a batch that was not locked.
                self._backend.delete("dv", item.namespace, item.name)
                raise LockMismatch(f"{unlike}; the volume was removed", where=item.label)
        self._done(live, "imported", end.note)

    def _done(self, live: _Live, verdict: Verdict, note: str) -> None:
        item = live.item
        claim = ExistingState.of(self._backend, item).claim
        facts = facts_of(self._backend, item, claim)
        outcome = self._backend.outcome(item.namespace, item.name)
        result = replace(
            self._result(item, verdict, live=live, note=note),
            # The worker's outcome is deleted once it has been recorded.
            size=facts.disk_size if facts.disk_size is not None else facts.virtual_size,
            format=facts.format,
            digest=facts.digest,
        )
        if verdict == "imported" and outcome is not None:
            rate = outcome.fetched / outcome.seconds if outcome.fetched and outcome.seconds else None
            result = replace(result, fetched=outcome.fetched, rate=rate)
        if item.pinnable and not self._options.locked:
            if facts.digest is not None:
                self._record({item.label: self._entry(item, facts)})
            else:
                result = replace(result, note="it was imported without a digest, so the lock file cannot pin it")
        self._finish(live, result)

    def _entry(self, item: Item, facts: Facts) -> Entry:
        """Return the entry, with the recorded length if it is unknown now and the content is the same."""
        entry, known = facts.entry(item), self._known.get(item.label)
        if known is not None and entry.length is None and replace(known, length=None) == entry:
            return known
        return entry

    def _record(self, entries: Mapping[str, Entry]) -> None:
        """Write entries at once, so that a killed batch keeps its pins; after an error, retry at the end."""
        try:
            self._lock_changed |= record(self._lockfile, entries)
        except CdiError:
            self._unwritten |= entries

    def _finish(self, live: _Live, result: Result) -> None:
        self._running.remove(live)
        self._end(live.item, result)

    def _end(self, item: Item, result: Result) -> None:
        self._results[item.key] = result
        self._audience.ended(item, result)

    # --- results ----------------------------------------------------------------------------------------------------

    def _result(
        self,
        item: Item,
        verdict: Verdict,
        *,
        note: str = "",
        failure: CdiError | None = None,
        live: _Live | None = None,
    ) -> Result:
        return Result(
            label=item.label,
            namespace=item.namespace,
            name=item.name,
            url=item.url,
            verdict=verdict,
            note=note,
            failure=None if failure is None else Failure.from_error(failure),
            seconds=None if live is None else time.monotonic() - live.began,
        )

    def _report(self, *, interrupted: bool, timed_out: bool) -> Report:
        wait([live.starting for live in self._running if live.importing is None], timeout=_SHUTDOWN_TIMEOUT)
        for live in self._running:
            if self._starter.applied(live.item):
                self._end(live.item, self._result(live.item, "running", live=live, note="continues in the background"))
        for item in self._batch.items:
            if item.key not in self._results:
                self._end(item, self._result(item, "skipped", note="not started"))
        failure = None
        if self._unwritten:
            try:
                self._lock_changed |= record(self._lockfile, self._unwritten)
            except CdiError as error:
                failure = Failure.from_error(error)
        return Report(
            results=tuple(self._results[item.key] for item in self._batch.items),
            lockfile=self._lockfile,
            locked=self._options.locked,
            lock_changed=self._lock_changed,
            lock_failure=failure,
            interrupted=interrupted,
            timed_out=timed_out,
            seconds=time.monotonic() - self._began,
        )


def _refuse(problems: list[str]) -> None:
    if problems:
        lines = problems[:_MAX_PROBLEMS]
        more = len(problems) - len(lines)
        raise InvalidManifest("; ".join([*lines, f"and {more} more"] if more else lines), remedy="")
