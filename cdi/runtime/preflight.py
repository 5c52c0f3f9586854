"""Explains what a request on the command line would come to, and finds the size of a disk that names none."""

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
from cdi.reconcile.origin import requested_size
from cdi.runtime.examine import Ask
from cdi.runtime.explain import Explanation, explain
from cdi.runtime.foresee import Foresight
from cdi.runtime.home import Home
from cdi.runtime.peek import PeekedPipe
from cdi.runtime.request import Request
from cdi.runtime.wanted import manifests
from cdi.runtime.watched import OnProgress
from cdi.store.base import Key
from cdi.store.local import LocalStore

_LEAST: Final = 1 << 20
"""Bytes; the API knows no smaller claim."""
_ANY: Final = 1 << 40
"""A DataVolume must ask for some size; this one is not looked at."""


def name_of(request: Request, name: str | None) -> str:
    """The DataVolume's: the one that is given, else one made from the URL.  Raises `UsageError`."""
    found = name or request.place.name
    if found is None:
        raise UsageError("no name can be made of it", where=request.place.location, remedy="give one with --name")
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
    """What importing `request` would come to; `stream` is what stands for standard input, and is read.
     Raises `UsageError`, `InvalidManifest`, `Interrupted`;
    `AlreadyExists` where a DataVolume of that name wants something else.
    """
    name = name or request.place.name or "image"
    before = _stored_size(home, namespace, name)
    wanted = manifests(request, namespace, name, request.size or before or _ANY)
    place = request.place
    try:
        foresight = Foresight(home, [*wanted.inputs, wanted.datavolume], namespace=namespace)
    except InvalidManifest as error:
        if before is None:
            raise
        raise AlreadyExists(f"DataVolume {namespace}/{name} exists and is another one", where=error.what) from error
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
    """What a DataVolume of that name asked for; None where there is none."""
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
    """The image's virtual size in bytes (1 MiB at least), read to its end where only that tells it.

    Standard input is looked at through `pipe`, and left where it was if it is a file.  Raises whatever the import would
    end with; `UsageError` where the size cannot be known: of an archive, and of raw content that comes through a pipe.
    """
    if request.content_type == "archive":
        raise UsageError("how large an archive becomes is not known before", remedy="give --size")
    if pipe is not None:
        with pipe.looking() as stream:
            told = preflight(home, request, namespace, name, ask=Ask(), stream=stream, on_progress=on_progress)
        size = _size(told)
        if size is None:
            raise UsageError("what comes through this pipe does not tell its size before", remedy="give --size")
        return size
    for ask in (Ask(), Ask(whole=True)):
        with _rewound(request):
            told = preflight(home, request, namespace, name, ask=ask, on_progress=on_progress)
        size = _size(told)
        if size is not None:
            return size
    raise UsageError(
        "the image is empty, or does not tell its size", where=request.place.location, remedy="give --size"
    )


def _size(told: Explanation) -> int | None:
    if told.refusal is not None:
        raise told.refusal
    size = told.found.virtual_size if told.found is not None else None
    return max(size, _LEAST) if size else None


@contextlib.contextmanager
def _rewound(request: Request) -> Iterator[None]:
    """Standard input that is a file stands afterwards where it stood."""
    if request.place.kind != "stdin":
        yield
        return
    start = os.lseek(0, 0, os.SEEK_CUR)
    try:
        yield
    finally:
        os.lseek(0, start, os.SEEK_SET)


def is_pipe(request: Request) -> bool:
    """Standard input that can be read once only."""
    return request.place.kind == "stdin" and not stat.S_ISREG(os.fstat(0).st_mode)
