"""Detection of the size of an image's disk, for a request that gives none."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Final

from cdi.api.errors import CdiError, SourceError, UsageError
from cdi.client.request import Request
from cdi.client.with_progress import OnProgress
from cdi.explain.findings import Ask
from cdi.explain.inspect import inspect
from cdi.explain.local import explain_request
from cdi.explain.peek import PeekedPipe
from cdi.explain.result import Explanation
from cdi.local.home import Home

_MIN_SIZE: Final = 1 << 20
"""Smallest size of a PVC in bytes."""


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
    _refuse_archive(request)
    if pipe is not None:
        with pipe.looking() as stream:
            explanation = explain_request(
                home, request, namespace, name, ask=Ask(), stream=stream, on_progress=on_progress
            )
        size = _size(explanation)
        if size is None:
            raise UsageError("the size of the image in this pipe is not known in advance", remedy="give --size")
        return size
    for ask in (Ask(), Ask(whole=True)):
        with _rewound(request):
            explanation = explain_request(home, request, namespace, name, ask=ask, on_progress=on_progress)
        size = _size(explanation)
        if size is not None:
            return size
    raise _without_size(request)


def find_size_for_cluster(
    request: Request, secret: Mapping[str, bytes] | None, *, on_progress: OnProgress | None = None
) -> int:
    """Return the image's virtual size as `find_size`, for an import into a cluster, reading the source from here.

    `secret` has the values of the Secret that the request names.
    """
    _refuse_archive(request)
    for whole in (False, True):
        found = inspect(request, whole=whole, secret=secret, on_progress=on_progress)
        if found.refusal is not None:
            raise _from_here(found.refusal)
        if found.virtual_size:
            return max(found.virtual_size, _MIN_SIZE)
    raise _without_size(request)


def is_pipe(request: Request) -> bool:
    """Return whether the request reads a standard input that can be read only once."""
    return request.place.kind == "stdin" and not stat.S_ISREG(os.fstat(0).st_mode)


def name_of(request: Request, name: str | None) -> str:
    """Return the DataVolume's name, as given or made from the URL; raise `UsageError`."""
    found = name or request.place.name
    if found is None:
        raise UsageError("no name can be derived from it", where=request.place.location, remedy="give one with --name")
    return found


def _refuse_archive(request: Request) -> None:
    if request.content_type == "archive":
        raise UsageError("the size of an unpacked archive is not known in advance", remedy="give --size")


def _without_size(request: Request) -> UsageError:
    what = "the image is empty or does not contain its size"
    return UsageError(what, where=request.place.location, remedy="give --size")


def _size(explanation: Explanation) -> int | None:
    if explanation.refusal is not None:
        raise explanation.refusal
    size = explanation.found.virtual_size if explanation.found is not None else None
    return max(size, _MIN_SIZE) if size else None


def _from_here(error: CdiError) -> CdiError:
    """Return the error; one of a source is extended by a note that the cluster's access may differ."""
    if isinstance(error, SourceError):
        hint = "; it was requested from this machine: with --size only the cluster has to reach it"
        return type(error)(error.what, where=error.where, remedy=f"{error.remedy}{hint}")
    return error


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
