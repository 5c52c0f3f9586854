"""Query of an image's size from this machine, for an import into a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cdi.api.errors import CdiError, SourceError, UsageError
from cdi.client.request import Request
from cdi.client.with_progress import OnProgress
from cdi.explain.inspect import inspect

_MIN_SIZE: Final = 1 << 20
"""Smallest size of a PVC in bytes."""


def find_size(request: Request, secret: Mapping[str, bytes] | None, *, on_progress: OnProgress | None = None) -> int:
    """Return the image's virtual size in bytes, at least 1 MiB, reading all of it if necessary.

    `secret` has the values of the Secret that the request names. Raises the error that the import would end with, and
    `UsageError` if the size cannot be known.
    """
    if request.content_type == "archive":
        raise UsageError("the size of an unpacked archive is not known in advance", remedy="give --size")
    for whole in (False, True):
        found = inspect(request, whole=whole, secret=secret, on_progress=on_progress)
        if found.refusal is not None:
            raise from_here(found.refusal)
        if found.virtual_size:
            return max(found.virtual_size, _MIN_SIZE)
    raise UsageError(
        "the image is empty or does not contain its size", where=request.place.location, remedy="give --size"
    )


def from_here(error: CdiError) -> CdiError:
    """Return the error; one of a source is extended by a note that the cluster's access may differ."""
    if isinstance(error, SourceError):
        hint = "; it was requested from this machine: with --size only the cluster has to reach it"
        return type(error)(error.what, where=error.where, remedy=f"{error.remedy}{hint}")
    return error
