"""Schedules of golden images on one machine.

The supervisor polls what is due and exits when it is idle; a keeper is a process that stays, and starts the supervisor
when a schedule, a channel's rule or a retention period calls for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime

from cdi.api.errors import CdiError
from cdi.client.golden_commands import require_offered
from cdi.client.golden_view import GoldenImage, poll_failure, poll_trouble, read
from cdi.local.backend import LocalBackend
from cdi.store.base import Key

REFRESH_INTERVAL = 900.0
"""Seconds after which the supervisor is started even if no poll is due: channels and retention depend on the time."""
_BUSY_INTERVAL = 1.0
"""Seconds between two checks while a poll or an import is running; the supervisor may have been killed."""

log = logging.getLogger("cdi.golden")


class Keeper:
    """Keeper of the schedules of one CDI_HOME; any number may run at a time."""

    def __init__(
        self,
        embedded: LocalBackend,
        *,
        names: Collection[str] = (),
        namespace: str | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Create a keeper.

        Args:
            embedded: The backend.
            names: Names of the images whose changes are reported, and that `run_due` waits for; empty for all.
            namespace: Their namespace; None for all.
            report: Called with a line about each change of what an image offers, and each failure.
        """
        self._embedded = embedded
        self._names = frozenset(names)
        self._namespace = namespace
        self._report = report
        self._reported: dict[Key, tuple[str | None, str | None]] = {}

    def run(self, stop: threading.Event) -> None:
        """Keep the schedules until `stop` is set."""
        refreshed = -REFRESH_INTERVAL
        with self._embedded.store.watch(["dataimportcrons", "datasources"]) as watch:
            while not stop.is_set():
                try:
                    images = list(self.images())
                    busy = any(is_due(image, time.time()) or not _is_idle(image) for image in images)
                    if images and (busy or time.monotonic() - refreshed >= REFRESH_INTERVAL):
                        self._embedded.start_supervisor()
                        refreshed = time.monotonic()
                    for image in images:
                        self._report_changes(image)
                    delay = _BUSY_INTERVAL if busy else _until_next(images, time.time())
                except CdiError as error:
                    # Such as a full disk; the schedules are kept when it has room again.
                    log.error("the schedules of golden images cannot be kept: %s", error)  # noqa: TRY400  complete
                    delay = _BUSY_INTERVAL * 10
                self._pause(watch.poll, stop, delay)

    def run_due(self, stop: threading.Event) -> list[CdiError]:
        """Poll the images that are due, wait until their newest versions are offered, and return the failures.

        An image whose poll cannot be started, such as without its Secret, is a failure as well.
        """
        waited = {image.key for image in self.images() if is_due(image, time.time()) or not _is_idle(image)}
        failures: list[CdiError] = []
        started = False
        with self._embedded.store.watch(["dataimportcrons", "datasources"]) as watch:
            while waited and not stop.is_set():
                # Another one is started only if the earlier one has exited; it polled whatever it could.
                again = self._embedded.start_supervisor()
                exited, started = started and again, started or again
                images = {image.key: image for image in self.images()}
                for key in list(waited):
                    image = images.get(key)
                    if image is None:
                        waited.remove(key)  # it was deleted
                        continue
                    troubled = poll_trouble(image) is not None
                    ended = (exited and troubled) if is_due(image, time.time()) else (troubled or _is_idle(image))
                    if ended:
                        waited.remove(key)
                        failures += self._result(image)
                if waited:
                    self._pause(watch.poll, stop, _BUSY_INTERVAL)
        return failures

    def images(self) -> Iterator[GoldenImage]:
        """Yield the images of this keeper; malformed ones, which their conditions report, are skipped."""
        for body in self._embedded.store.list("dataimportcrons", self._namespace):
            if not self._names or body["metadata"]["name"] in self._names:
                try:
                    yield read(self._embedded.store, body)
                except CdiError as error:
                    log.warning("%s: %s", Key.of_object(body), error)

    def _result(self, image: GoldenImage) -> Iterator[CdiError]:
        failure = poll_failure(image)
        try:
            if failure is None:
                require_offered(image)
        except CdiError as error:
            failure = error
        if failure is not None:
            self._report(f"{image.namespace}/{image.name}: {failure.message}")
            yield failure
        else:
            self._report(f"{image.namespace}/{image.name}: offers {image.offered}")

    def _report_changes(self, image: GoldenImage) -> None:
        key = image.key
        trouble = next(image.obstacles(), "") if image.settled() or poll_trouble(image) else ""
        now = (image.offered, trouble)
        before = self._reported.get(key)
        self._reported[key] = now
        if image.offered and (before is None or before[0] != image.offered):
            self._report(f"{image.namespace}/{image.name}: offers {image.offered}")
        if trouble and (before is None or before[1] != trouble):
            self._report(f"{image.namespace}/{image.name}: {trouble}")

    @staticmethod
    def _pause(poll: Callable[[float], object], stop: threading.Event, seconds: float) -> None:
        """Wait until an object changes, for at most so many seconds."""
        deadline = time.monotonic() + seconds
        while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
            if poll(min(left, _BUSY_INTERVAL)):
                return


def is_due(image: GoldenImage, now: float) -> bool:
    """Return whether a poll is due; a time that cannot be read is, since the supervisor replaces it."""
    if not image.cron.spec.schedule:
        return False
    moment = next_poll(image)
    return moment is None or moment <= now


def next_poll(image: GoldenImage) -> float | None:
    """Return the time of the next poll in seconds since the epoch, None if it is not set or cannot be read."""
    try:
        moment = datetime.fromisoformat(image.next_poll or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _is_idle(image: GoldenImage) -> bool:
    """Return whether nothing is being done for an image before its next poll."""
    return image.settled() or image.wanted is None


def _until_next(images: Collection[GoldenImage], now: float) -> float:
    moments = [moment for image in images if image.cron.spec.schedule and (moment := next_poll(image)) is not None]
    return max(0.0, min([REFRESH_INTERVAL, *(moment - now for moment in moments)]))
