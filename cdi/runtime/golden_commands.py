"""Commands to the controller of golden images: each writes an annotation, and waits until it has been carried out."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from cdi.api.conditions import find_condition
from cdi.api.dataimportcron import VersionState
from cdi.api.errors import (
    GoldenCommandRefused,
    GoldenVersionUnavailable,
    InternalError,
    NotFound,
    UsageError,
    WaitTimeout,
    by_code,
)
from cdi.api.names import ANN_CRON_DESIRED_DIGEST, ANN_CRON_LAST_TIME, ANN_CRON_NEXT_TIME, ANN_CRON_POLL
from cdi.api.phases import Reason
from cdi.api.timestamps import timestamp
from cdi.runtime.backend import Backend
from cdi.runtime.golden_view import SETTINGS_CONDITION, GoldenImage, get, poll_failure, read
from cdi.store.base import Key

_CHECK_INTERVAL = 1.0
"""Seconds after which the DataSource is read again, whose changes are not watched."""


def run_command(
    backend: Backend, image: GoldenImage, annotation: str, value: str, *, timeout: float | None
) -> GoldenImage:
    """Write a command's annotation and wait until the controller has carried it out, which removes it.

    Returns:
        The image as it is then.

    Raises:
        GoldenCommandRefused: The controller refused it; the annotation is removed again.
        WaitTimeout: The timeout has expired; the command stays, and will be carried out.
        NotFound: The image was deleted.
    """
    # The same command that was written before, and not withdrawn, is refused for the same reason.
    before = None if image.annotations.get(annotation) == value else _refusal(image, annotation)
    annotate(backend, image, {annotation: value})

    def done(now: GoldenImage) -> bool:
        if now.annotations.get(annotation) != value:
            return True
        refusal = _refusal(now, annotation)
        if refusal is not None and refusal != before:
            annotate(backend, now, {annotation: None})
            raise GoldenCommandRefused(refusal[1], where=f"golden image {now.namespace}/{now.name}")
        return False

    return wait_until(backend, image, done, timeout=timeout, what=f"carrying out {annotation}={value}")


def annotate(backend: Backend, image: GoldenImage, annotations: Mapping[str, str | None]) -> None:
    """Write annotations of an image, None to remove one; raise `NotFound` if it was deleted or replaced."""
    uid = image.cron.metadata.uid or ""
    backend.annotate("dataimportcron", image.namespace, image.name, annotations, uid=uid)


def start_poll(backend: Backend, image: GoldenImage, *, now: float | None = None) -> str:
    """Make the next poll due now, and return its time as written.

    Raises:
        UsageError: The image has no schedule, so its source is never polled.
    """
    if not image.cron.spec.schedule:
        raise UsageError(
            f"golden image {image.namespace}/{image.name} has no schedule, so its source is never polled",
            remedy=f"set spec.schedule, or write the digest into annotation {ANN_CRON_DESIRED_DIGEST}",
        )
    began = timestamp(datetime.fromtimestamp(time.time() if now is None else now, UTC))
    annotate(backend, image, {ANN_CRON_NEXT_TIME: began})
    return began


def wait_for_poll(backend: Backend, image: GoldenImage, began: str, *, timeout: float | None) -> GoldenImage:
    """Wait for the end of the poll that was made due at `began`, and return the image with its result.

    Args:
        backend: The backend.
        image: The image as it was before.
        began: What `start_poll` returned.
        timeout: Seconds to wait; None waits without limit.

    Raises:
        CdiError: The poll failed.
        WaitTimeout: The timeout has expired; the poll continues.
    """
    recorded = (ANN_CRON_LAST_TIME, ANN_CRON_POLL)
    before = [image.annotations.get(name) for name in recorded]

    def done(now: GoldenImage) -> bool:
        if now.annotations.get(ANN_CRON_NEXT_TIME) == began:
            return False
        if [now.annotations.get(name) for name in recorded] == before:
            return False
        failure = poll_failure(now)
        if failure is not None:
            raise failure
        return True

    return wait_until(backend, image, done, timeout=timeout, what="the poll")


def require_offered(image: GoldenImage) -> None:
    """Raise the error of the wanted version unless it is offered, or another one on request (pin, hold)."""
    version = image.version(image.wanted)
    if version is None or version.name == image.offered or image.state in ("Pinned", "Held"):
        return
    why = version.message or version.reason or next(image.obstacles(), "")
    kind = by_code(version.reason or "")
    if version.state == VersionState.FAILED and kind is not InternalError:
        raise kind(f"{version.name}: {why}", remedy="")
    raise GoldenVersionUnavailable(
        f"{version.name} is {'withheld' if version.withheld else version.state.lower()}: {why}",
        remedy=f"cdi golden describe {image.name} shows all versions",
    )


def wait_until(
    backend: Backend,
    image: GoldenImage,
    done: Callable[[GoldenImage], bool],
    *,
    timeout: float | None,
    what: str,
    on_update: Callable[[GoldenImage], None] = lambda _: None,
) -> GoldenImage:
    """Wait until `done` is true of an image, and return it.

    Raises:
        WaitTimeout: The timeout has expired.
        NotFound: The image was deleted.
    """
    key = Key.of("dataimportcron", image.namespace, image.name)
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    with backend.courses({key}) as courses:
        while True:
            body, _ = courses.look(key)
            if body["metadata"]["uid"] != image.cron.metadata.uid:
                raise NotFound(f"golden image {image.namespace}/{image.name} was replaced by another of that name")
            now = read(backend.store, body)
            on_update(now)
            if done(now):
                return now
            left = deadline - time.monotonic()
            if left <= 0:
                why = next(now.obstacles(), "")
                raise WaitTimeout(
                    f"{what} of golden image {now.namespace}/{now.name} has not ended{f': {why}' if why else ''}",
                    remedy=f"it continues; cdi golden describe {now.name} shows its state",
                )
            courses.pause(min(left, _CHECK_INTERVAL))


def withdraw(backend: Backend, image: GoldenImage, annotation: str, value: str) -> None:
    """Remove a command that has not been carried out, unless it was replaced by another."""
    with contextlib.suppress(NotFound):
        now = get(backend, image.namespace, image.name)
        if now.annotations.get(annotation) == value:
            annotate(backend, now, {annotation: None})


def _refusal(image: GoldenImage, annotation: str) -> tuple[str | None, str] | None:
    """Return time and text of the controller's refusal of a command, None if it has not refused it."""
    conditions = (image.cron.status.conditions if image.cron.status else None) or []
    condition = find_condition(conditions, SETTINGS_CONDITION)
    if condition is None or condition.reason != Reason.COMMAND_REFUSED or not condition.message:
        return None  # another reason is a command that waits, or a setting
    name = annotation.rpartition("/")[2]
    if name not in condition.message:
        return None
    return condition.last_heartbeat_time or condition.last_transition_time, condition.message
