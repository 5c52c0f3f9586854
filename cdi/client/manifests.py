"""Reading of manifests from files, directories, globs and standard input.

The format is YAML 1.1 as Kubernetes accepts it: several documents in a file, JSON as a subset, no tags. Input is
untrusted: size, depth and the number of nodes with aliases expanded are bounded. Duplicate keys are rejected, because a
reader may see the one that has no effect.
"""

from __future__ import annotations

import glob
import stat
import sys
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import yaml

from cdi.api.errors import InvalidManifest, UsageError
from cdi.client.document import Document

MAX_SIZE = 16 << 20
"""Largest size of a file in bytes."""
_MAX_DEPTH = 64
_NODES = 200_000
_SUFFIXES = (".yaml", ".yml", ".json")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Strict(_Loader):  # type: ignore[misc]  # the C loader has no types
    """Safe loader that rejects duplicate keys, and keeps dates as strings like Kubernetes."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, Any]]]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in _Loader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
                seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def load(names: Iterable[str], *, stdin: BinaryIO | None = None, recursive: bool = False) -> list[Document]:
    """Return the documents of files, directories (their .yaml, .yml and .json files), globs and ``-``, in that order.

    Empty documents are omitted. Raises `UsageError` if a name matches no file, `InvalidManifest` if one is not YAML.
    """
    documents: list[Document] = []
    for name in names:
        if name == "-":
            documents += parse(_stdin(stdin or sys.stdin.buffer), origin="-")
            continue
        for path in files(name, recursive=recursive):
            documents += read(path)
    return documents


def read(path: Path) -> list[Document]:
    """Return the documents of one file; raise the errors of `load`."""
    try:
        with path.open("rb") as file:
            return list(parse(_bounded(file, str(path)), origin=str(path)))
    except OSError as error:
        raise UsageError(
            f"the file cannot be read: {error.strerror}", where=str(path), remedy="check the path"
        ) from error


def files(name: str, *, recursive: bool = False) -> list[Path]:
    """Return the files that a command-line name refers to, in order; raise `UsageError` if there are none."""
    path = Path(name).expanduser()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        found = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(name) else []
        if not found:
            why = "no file matches" if glob.has_magic(name) else f"the file cannot be read: {error.strerror}"
            raise UsageError(why, where=name, remedy="check the path") from error
        return [each for one in found for each in files(one, recursive=recursive)]
    if not stat.S_ISDIR(mode):
        return [path]
    inside = path.rglob("*") if recursive else path.iterdir()
    found_files = sorted(one for one in inside if one.suffix in _SUFFIXES and one.is_file())
    if not found_files:
        raise UsageError("the directory has no .yaml, .yml or .json file", where=name, remedy="check the path")
    return found_files


def parse(content: bytes, *, origin: str) -> Iterator[Document]:
    """Yield the documents of one file's content; raise `InvalidManifest`."""
    try:
        text = content.decode("utf-8-sig")
        _check_depth(text, origin)
        loader = _Strict(text)
        try:
            while loader.check_node():
                node = loader.get_node()
                body = loader.construct_document(node)
                if body is None:
                    continue
                _check_size(body, origin)
                yield Document(origin=origin, line=node.start_mark.line + 1, body=body)
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise InvalidManifest(
            "the file is not UTF-8 text", where=origin, remedy="give a manifest, not an image"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidManifest(f"not YAML: {_words(error)}", where=origin, remedy="correct the file") from error


def _stdin(file: BinaryIO) -> bytes:
    try:
        return _bounded(file, "-")
    except OSError as error:
        raise UsageError(
            f"standard input cannot be read: {error.strerror}", remedy="redirect a file or pipe to it, or name a file"
        ) from error


def _bounded(file: BinaryIO, origin: str) -> bytes:
    content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise InvalidManifest(
            f"the file is larger than {MAX_SIZE >> 20} MiB", where=origin, remedy="give a manifest, not an image"
        )
    return content


def _check_depth(text: str, origin: str) -> None:
    """Bound the nesting: the C loader recurses for every level, and the process crashes if there are too many."""
    depth = 0
    for event in yaml.parse(text, _Strict):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            depth += 1
            if depth > _MAX_DEPTH:
                raise InvalidManifest("the YAML is nested too deeply", where=origin)
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            depth -= 1


def _check_size(body: Any, origin: str) -> None:
    """Bound the number of values with aliases expanded, before any other code walks over them."""
    left = [(body, 0)]
    nodes = 0
    while left:
        one, depth = left.pop()
        nodes += 1
        if nodes > _NODES:
            raise InvalidManifest("the YAML has too many values, aliases expanded", where=origin)
        if depth > _MAX_DEPTH:
            raise InvalidManifest("the YAML is nested too deeply", where=origin)
        if isinstance(one, dict):
            left += [(value, depth + 1) for value in one.values()]
        elif isinstance(one, (list, tuple, set)):
            left += [(value, depth + 1) for value in one]


def _words(error: Exception) -> str:
    """Return the problem and its position as one line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return " ".join(f"{problem}{place}".split())[:300]
