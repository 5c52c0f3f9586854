"""Observation of one import."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from cdi.api.errors import NotFound, Retry
from cdi.api.job import Failure
from cdi.api.phases import Phase
from cdi.api.status_detail import status_detail
from cdi.batch.importing import Importing
from cdi.client.backend import Advance, Backend, ProgressWatch
from cdi.client.status_view import failure_of, phase_of, restarts_of
from cdi.explain.item import Item
from cdi.store.base import Object


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """State of an import that is running."""

    phase: str
    progress: Advance | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """State of an import that has succeeded or failed."""

    failure: Failure | None = None
    note: str = ""


_AGAIN = "it is retried in the background"


def track(backend: Backend, courses: ProgressWatch, item: Item, importing: Importing) -> Update | Finished:
    """Return the state of an import.

    A failure that requires intervention ends it for the batch, although the DataVolume still waits.
    """
    try:
        body, progress = _look(backend, courses, item, importing)
    except NotFound:
        gone = NotFound(f"{item.key} was deleted during the import", remedy="run the batch again")
        return Finished(failure=Failure.from_error(gone))
    phase = phase_of(body)
    failure = failure_of(body)
    if phase is Phase.SUCCEEDED:
        return Finished(note=importing.note)
    if failure is not None and failure.retry is Retry.NEVER:
        return Finished(failure=failure)
    if failure is not None and failure.retry is Retry.ON_CHANGE and not _old(body, importing):
        return Finished(failure=failure, note=_AGAIN)
    # The conditions about uploads are for the user with the file; here the batch uploads it.
    note = failure.message if failure is not None else "" if item.path is not None else status_detail(body)[1]
    return Update(phase=phase.value or Phase.PENDING.value, progress=progress, note=note)


def _look(backend: Backend, courses: ProgressWatch, item: Item, importing: Importing) -> tuple[Object, Advance | None]:
    """Return the DataVolume that was started; the watch may not have reported it yet; raise `NotFound`."""
    with contextlib.suppress(NotFound):
        body, advance = courses.look(item.key)
        if body["metadata"]["uid"] == importing.uid:
            return body, advance
    body = backend.get("dv", item.namespace, item.name)
    return body, backend.progress_of(body)


def _old(body: Object, importing: Importing) -> bool:
    """Return whether the newest attempt was begun before this run, with the next attempt still to come."""
    return importing.before is not None and restarts_of(body) <= importing.before
