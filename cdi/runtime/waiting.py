"""Waiting until an object is as somebody wants it."""

from __future__ import annotations

import math
import time

from cdi.api.errors import NotFound, WaitTimeout
from cdi.api.phases import Phase
from cdi.runtime.backend import Advance, Backend, OnUpdate
from cdi.runtime.view import raise_failure, reached, standing
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
    """Until the phase is `until`, or a condition of that name is True, or, for ``deleted``, it is gone.

    `on_update` is called with the object and how far its import is, at first and whenever either changes.
    Returns the object as it was last seen.  Raises the failure of a DataVolume that ends as Failed;
    `WaitTimeout` after `timeout` seconds; `NotFound`.  Where `patient` is False, also a failure that only a
    person can end (`Retry.ON_CHANGE`).
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
                raise WaitTimeout(f"{key} is {standing(body)}")
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
