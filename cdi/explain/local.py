"""Preview of a command-line request, and detection of the disk's size if none is given."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cdi.api.datavolume import DataVolume
from cdi.api.errors import AlreadyExists, InvalidManifest, NotFound, UsageError
from cdi.api.validation import parse
from cdi.client.request import Request
from cdi.client.request_to_manifests import build_manifests
from cdi.client.with_progress import OnProgress
from cdi.explain.image import Explanation, explain
from cdi.explain.local_dry_run import DryRunResult
from cdi.explain.peek import PeekedPipe
from cdi.explain.source_check import Ask
from cdi.local.home import Home
from cdi.reconcile.source import requested_size
from cdi.store.base import Key
from cdi.store.file_store import LocalStore

_MIN_SIZE: Final = 1 << 20
"""Smallest size of a PVC in bytes."""
_ANY: Final = 1 << 40
"""A placeholder: a DataVolume has to request some size."""


def name_of(request: Request, name: str | None) -> str:
    """Return the DataVolume's name, as given or made from the URL; raise `UsageError`."""
    found = name or request.place.name
    if found is None:
        raise UsageError("no name can be derived from it", where=request.place.location, remedy="give one with --name")
    return found


def preflight(
    home: Home,
    request: Request,
    namespace: str,
    name: str | None,
    *,
    ask: Ask | None = None,
    stream: int = 0,
    on_progress: OnProgress | None = None,
) -> Explanation:
    """Preview the import of `request`.

    Args:
        home: The CDI_HOME.
        request: The request.
        namespace: The namespace of the DataVolume.
        name: The name of the DataVolume.
        ask: What to examine.
        stream: The descriptor that is read as standard input.
        on_progress: Called with the progress.

    Raises:
        UsageError: The request is invalid.
        InvalidManifest: The DataVolume would be invalid.
        AlreadyExists: A DataVolume of this name has another spec.
        Interrupted: The examination was cancelled.
    """
    name = name or request.place.name or "image"
    before = _stored_size(home, namespace, name)
    wanted = build_manifests(request, namespace, name, request.size or before or _ANY)
    place = request.place
    try:
        foresight = DryRunResult(home, [*wanted.inputs, wanted.datavolume], namespace=namespace)
    except InvalidManifest as error:
        if before is None:
            raise
        raise AlreadyExists(
            f"DataVolume {namespace}/{name} already exists with another spec", where=error.what
        ) from error
    with foresight:
        return explain(
            foresight,
            home,
            foresight.datavolumes[0],
            upload=Path(place.text) if place.kind == "file" else None,
            stream=stream if place.kind == "stdin" else None,
            sized=request.size is not None,
            ask=ask,
            on_progress=on_progress,
        )


def _stored_size(home: Home, namespace: str, name: str) -> int | None:
    """Return the size that an existing DataVolume of this name requested, or None if there is none."""
    try:
        dv = parse(LocalStore(home.objects).get(Key.of("dv", namespace, name)))
    except NotFound:
        return None
    return (requested_size(dv) if isinstance(dv, DataVolume) else None) or _ANY


def find_size(
    home: Home,
    request: Request,
    namespace: str,
    name: str,
    *,
    pipe: PeekedPipe | None = None,
    on_progress: OnProgress | None = None,
) -> int:
    """Return the image's virtual size in bytes, at least 1 MiB, reading all of it if necessary.

    Standard input is read through `pipe`, and rewound if it is a file. Raises the error that the import would end with,
    and `UsageError` if the size cannot be known: of an archive, and of raw content from a pipe.
    """
    if request.content_type == "archive":
        raise UsageError("the size of an unpacked archive is not known in advance", remedy="give --size")
    if pipe is not None:
        with pipe.looking() as stream:
            told = preflight(home, request, namespace, name, ask=Ask(), stream=stream, on_progress=on_progress)
        size = _size(told)
        if size is None:
            raise UsageError("the size of the image in this pipe is not known in advance", remedy="give --size")
        return size
    for ask in (Ask(), Ask(whole=True)):
        with _rewound(request):
            told = preflight(home, request, namespace, name, ask=ask, on_progress=on_progress)
        size = _size(told)
        if size is not None:
            return size
    raise UsageError(
        "the image is empty or does not contain its size", where=request.place.location, remedy="give --size"
    )


def _size(told: Explanation) -> int | None:
    if told.refusal is not None:
        raise told.refusal
    size = told.found.virtual_size if told.found is not None else None
    return max(size, _MIN_SIZE) if size else None


@contextlib.contextmanager
def _rewound(request: Request) -> Iterator[None]:
    """Restore the offset of standard input afterwards if it is a file."""
    if request.place.kind != "stdin":
        yield
        return
    start = os.lseek(0, 0, os.SEEK_CUR)
    try:
        yield
    finally:
        os.lseek(0, start, os.SEEK_SET)


def is_pipe(request: Request) -> bool:
    """Return whether the request reads a standard input that can be read only once."""
    return request.place.kind == "stdin" and not stat.S_ISREG(os.fstat(0).st_mode)
