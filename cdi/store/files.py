"""Object files and their directories, with every foreign exception mapped."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from cdi import durable
from cdi.api.document import parse_json
from cdi.api.errors import CdiError, InternalError
from cdi.store.base import Key, Object

ELSEWHERE: Final = "set CDI_HOME to another directory"
"""How another place for objects, volumes and all that belongs to them is chosen."""


def read(path: Path) -> Object | None:
    """None where it is gone; a file that a power failure or a hand has damaged is an `InternalError`."""
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
    """What everybody relies on; raises one of many exceptions where it is not so.

    Files may be edited by hand, and one that is wrong must be found here, not in the middle of a controller.
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
    """Foreign exceptions become this project's at this edge."""
    return durable.mapped("the objects", where, elsewhere=ELSEWHERE)
