"""Waiting for the state of an object."""

from __future__ import annotations

import math
import time

from cdi.api.errors import NotFound, WaitTimeout
from cdi.api.phases import Phase
from cdi.client.backend import Advance, Backend, OnUpdate
from cdi.client.status_view import raise_failure, reached, summary
from cdi.store.base import Key, Object


def wait(
    backend: Backend,
    kind: str,
    namespace: str | None,
    name: str,
    until: str = Phase.SUCCEEDED,
    timeout: float | None = None,
    on_update: OnUpdate | None = None,
    *,
    patient: bool = True,
) -> Object:
    """Wait for a phase, for a condition of that name, or for the deletion of an object (``deleted``).

    Args:
        backend: The backend.
        kind: The kind of the object.
        namespace: The namespace of the object.
        name: The name of the object.
        until: The phase or condition to wait for, or ``deleted``.
        timeout: Seconds to wait; None waits without limit.
        on_update: Called with the object and the progress of its import, at first and after each change.
        patient: Whether to wait even after a failure that requires intervention (`Retry.ON_CHANGE`).

    Returns:
        The object as it was last seen.

    Raises:
        CdiError: The DataVolume has failed.
        WaitTimeout: The timeout has expired.
        NotFound: There is no such object.
    """
    key = Key.of(kind, namespace, name)
    gone = until.lower() == "deleted"
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    seen: tuple[str, Advance | None] | None = None
    with backend.courses({key}) as courses:
        body, advance = courses.look(key)
        uid = body["metadata"]["uid"]
        while True:
            now = (body["metadata"]["resourceVersion"], advance)
            if now != seen:
                seen = now
                if on_update is not None:
                    on_update(body, advance)
                if reached(body, until):
                    return body
                if not gone and until != Phase.FAILED:
                    raise_failure(body, patient=patient)
            if (left := deadline - time.monotonic()) <= 0:
                raise WaitTimeout(f"{key} is {summary(body)}")
            courses.pause(left)
            try:
                new, advance = courses.look(key)
            except NotFound:
                if gone:
                    return body
                raise
            if gone and new["metadata"]["uid"] != uid:
                return body
            body = new
