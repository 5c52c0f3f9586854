"""Object files and their directories, with operating system errors mapped to `CdiError`s."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from cdi import atomic_file
from cdi.api.errors import CdiError, InternalError
from cdi.api.json_document import parse_json
from cdi.store.base import Key, Object

ELSEWHERE: Final = "set CDI_HOME to another directory"
"""Remedy that names how to choose another directory for objects, volumes and related files."""


def read(path: Path) -> Object | None:
    """Read an object file; return None if it does not exist.

    Raises:
        InternalError: The file is damaged, for example by a power failure or manual editing.
    """
    with mapped(path):
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        body: Object = parse_json(text.decode("utf-8", "surrogatepass"))
        _check_shape(body)
    except (ValueError, TypeError, KeyError, AttributeError, CdiError) as error:
        raise InternalError(
            "a stored object is damaged", where=str(path), remedy="remove that file and apply its manifest again"
        ) from error
    return body


def _check_shape(body: Object) -> None:
    """Check the fields that all users of stored objects rely on.

    Files may be edited by hand. A wrong one must be detected here and not in the middle of a controller. Raises one of
    several exceptions, which `read` maps.
    """
    Key.of_object(body)
    metadata = body["metadata"]
    int(metadata["resourceVersion"])
    for text in (
        body["apiVersion"],
        metadata["uid"],
        metadata["creationTimestamp"],
        *(metadata.get("finalizers") or ()),
    ):
        text.encode()
    for field in ("labels", "annotations"):
        for name, text in (metadata.get(field) or {}).items():
            (name + text).encode()
    for owner in metadata.get("ownerReferences") or ():
        (owner["kind"] + owner["name"] + owner["uid"]).encode()
    for part in ("spec", "status", "data", "binaryData", "involvedObject"):
        if body.get(part) is not None:
            body[part].items()


def names(directory: Path) -> list[str]:
    with mapped(directory):
        try:
            return sorted(name for name in os.listdir(directory) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []


def exists(path: Path) -> bool:
    with mapped(path):
        return path.exists()


def mapped(where: Path) -> contextlib.AbstractContextManager[None]:
    """Map operating system errors to this project's errors."""
    return atomic_file.mapped("the objects", where, elsewhere=ELSEWHERE)
