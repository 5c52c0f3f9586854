"""Commands to the controller of golden images: each writes an annotation, and waits until it has been carried out."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from cdi.api.annotations import DESIRED_DIGEST, LAST_POLL, NEXT_POLL, POLL_RECORD
from cdi.api.conditions import find_condition
from cdi.api.dataimportcron import VersionState
from cdi.api.errors import (
    Conflict,
    GoldenCommandRefused,
    GoldenVersionUnavailable,
    InternalError,
    NotFound,
    UsageError,
    WaitTimeout,
    by_code,
)
from cdi.api.golden import command_label
from cdi.api.phases import Reason
from cdi.api.timestamps import timestamp
from cdi.client.backend import Backend
from cdi.client.golden_view import SETTINGS_CONDITION, GoldenImage, get, poll_failure, read
from cdi.store.base import Key

_CHECK_INTERVAL = 1.0
"""Seconds after which the DataSource is read again, whose changes are not watched."""
_WRITE_ATTEMPTS = 20
"""Maximum number of attempts to write an image that others change at the same time."""


def run_command(
    backend: Backend, image: GoldenImage, annotation: str, value: str, *, timeout: float | None
) -> GoldenImage:
    """Write a command's annotation and wait until the controller has carried it out, which removes it.

    Returns:
        The image as it is then.

    Raises:
        Conflict: Another command with this annotation is pending, or has replaced this one.
        GoldenCommandRefused: The controller refused it; the annotation is removed again.
        WaitTimeout: The timeout has expired; the command stays, and will be carried out.
        NotFound: The image was deleted.
    """
    earlier = write_command(backend, image, annotation, value)
    # A command that was refused and withdrawn is still in the condition until the controller has reconciled the image;
    # one that was refused and not withdrawn is refused for the same reason.
    before = None if earlier.annotations.get(annotation) == value else _refusal(earlier, annotation, value)

    def done(now: GoldenImage) -> bool:
        pending = now.annotations.get(annotation)
        if pending not in (None, value):
            raise Conflict(
                f"golden image {now.namespace}/{now.name}: {annotation}={pending!r} has replaced {value!r}",
                remedy=f"cdi golden history {now.name} shows whether it was carried out before; repeat it if not",
            )
        refusal = _refusal(now, annotation, value)
        if refusal is not None and refusal != before:
            withdraw(backend, now, annotation, value)
            raise GoldenCommandRefused(refusal[1], where=f"golden image {now.namespace}/{now.name}")
        # The controller removes the annotation, and a refusal with it, by the request that writes the result.
        return pending is None

    return wait_until(backend, image, done, timeout=timeout, what=f"carrying out {annotation}={value}")


def write_command(backend: Backend, image: GoldenImage, annotation: str, value: str) -> GoldenImage:
    """Write a command's annotation, and return the image as it was before.

    A refused command is replaced; one that is pending is not, since it would never be carried out.

    Raises:
        Conflict: Another command with this annotation is pending.
        NotFound: The image was deleted or replaced.
    """
    for _ in range(_WRITE_ATTEMPTS):
        now = _read_again(backend, image)
        pending = now.annotations.get(annotation)
        if pending not in (None, value) and _refusal(now, annotation, pending) is None:
            raise Conflict(
                f"golden image {now.namespace}/{now.name}: {annotation}={pending!r} has not been carried out",
                remedy=f"wait until it has, or remove the annotation, and repeat {annotation}={value!r}",
            )
        with contextlib.suppress(Conflict):
            annotate(backend, now, {annotation: value}, version=now.cron.metadata.resource_version)
            return now
    raise _too_busy(image)


def annotate(
    backend: Backend, image: GoldenImage, annotations: Mapping[str, str | None], *, version: str | None = None
) -> None:
    """Write annotations of an image, None to remove one.

    Raises:
        Conflict: Its resourceVersion is not `version`.
        NotFound: It was deleted or replaced.
    """
    uid = image.cron.metadata.uid or ""
    backend.annotate("dataimportcron", image.namespace, image.name, annotations, uid=uid, version=version)


def start_poll(backend: Backend, image: GoldenImage, *, now: float | None = None) -> str:
    """Make the next poll due now, and return its time as written.

    Raises:
        UsageError: The image has no schedule, so its source is never polled.
    """
    if not image.cron.spec.schedule:
        raise UsageError(
            f"golden image {image.namespace}/{image.name} has no schedule, so its source is never polled",
            remedy=f"set spec.schedule, or write the digest into annotation {DESIRED_DIGEST.key}",
        )
    began = timestamp(datetime.fromtimestamp(time.time() if now is None else now, UTC))
    annotate(backend, image, {NEXT_POLL.key: began})
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
    recorded = (LAST_POLL.key, POLL_RECORD.key)
    before = [image.annotations.get(name) for name in recorded]

    def done(now: GoldenImage) -> bool:
        if now.annotations.get(NEXT_POLL.key) == began:
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
        for _ in range(_WRITE_ATTEMPTS):
            now = _read_again(backend, image)
            if now.annotations.get(annotation) != value:
                return
            with contextlib.suppress(Conflict):
                annotate(backend, now, {annotation: None}, version=now.cron.metadata.resource_version)
                return
        raise _too_busy(image)


def _read_again(backend: Backend, image: GoldenImage) -> GoldenImage:
    now = get(backend, image.namespace, image.name)
    if now.cron.metadata.uid != image.cron.metadata.uid:
        raise NotFound(f"golden image {image.namespace}/{image.name} was replaced by another of that name")
    return now


def _too_busy(image: GoldenImage) -> Conflict:
    return Conflict(f"golden image {image.namespace}/{image.name} is changed by others faster than it can be written")


def _refusal(image: GoldenImage, annotation: str, value: str) -> tuple[str | None, str] | None:
    """Return time and text of the controller's refusal of a command, None if it has not refused it."""
    conditions = (image.cron.status.conditions if image.cron.status else None) or []
    condition = find_condition(conditions, SETTINGS_CONDITION)
    if condition is None or condition.reason != Reason.COMMAND_REFUSED or not condition.message:
        return None  # another reason is a command that waits, or a setting
    label = command_label(annotation, value)
    _, found, rest = f"; {condition.message}".partition(f"; {label}: ")
    text = rest.partition("; annotation ")[0]
    if not found or text.startswith("waiting "):
        return None  # the reason is that of another command
    return condition.last_heartbeat_time or condition.last_transition_time, f"{label}: {text}"
