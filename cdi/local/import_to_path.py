"""Import of an image into a file, a block device or a directory, without a DataVolume: ``cdi import --to``.

A transfer that was interrupted or killed resumes when the same command is repeated: its journal is kept below CDI_HOME,
under a name derived from source and target.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from cdi import atomic_file
from cdi.api.errors import AlreadyExists, Interrupted, TargetUnsuitable
from cdi.api.job import (
    BlockTargetSpec,
    DirectoryTargetSpec,
    FileTargetSpec,
    Job,
    Outcome,
    Progress,
    StreamSourceSpec,
    TargetSpec,
)
from cdi.client.locate import absolute
from cdi.client.request import Request, source_spec
from cdi.client.status_view import error_of
from cdi.client.with_progress import run_with_progress
from cdi.local.home import Home
from cdi.local.resumable_dirs import resumable_directory
from cdi.local.submit import stream_length
from cdi.target.file import kind_of_file
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer

OnProgress = Callable[[Progress], None]


def import_to_path(
    home: Home,
    request: Request,
    path: Path,
    *,
    replace: bool = False,
    secret: Mapping[str, bytes] | None = None,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Import `request` to `path`; an existing disk file is replaced only if `replace` is set.

    Args:
        home: The CDI_HOME.
        request: The image.
        path: The target.
        replace: Whether to replace an existing file.
        secret: The values of the Secret that the request names.
        on_progress: Called with the progress.

    Raises:
        CdiError: The transfer's error.
        AlreadyExists: The file exists.
        TargetBusy: The same transfer is running.
        Interrupted: The transfer was cancelled.
    """
    path = absolute(path)
    target = _target(path, request, replace=replace)
    name = _identity(request, path)
    home.make()
    with resumable_directory(home, name) as directory:
        source = source_spec(request, directory / "inputs", secret)
        if isinstance(source, StreamSourceSpec):
            source = StreamSourceSpec(descriptor=0, length=stream_length())
        job = Job(
            id=name,
            source=source,
            target=target,
            content_type=request.content_type,
            size=request.size,
            checksum=request.checksum,
            policy=request.policy(),
            journal=str(directory / "journal"),
            scratch=str(directory / "scratch"),
        )
        control = TransferControl(job)
        outcome = run_with_progress(lambda: transfer(job, control), control, on_progress)
    if outcome.failure is not None:
        if outcome.failure.code == Interrupted.__name__:
            raise Interrupted("the transfer was stopped")
        raise error_of(outcome.failure)
    return outcome


def _target(path: Path, request: Request, *, replace: bool) -> TargetSpec:
    """Return the target; raise `AlreadyExists`, `TargetUnsuitable` or `TargetPermission`."""
    own, mode = _mode(path, follow=False), _mode(path, follow=True)
    if request.content_type == "archive":
        if mode is None or not stat.S_ISDIR(mode):
            raise TargetUnsuitable(
                "an archive is unpacked into a directory", where=str(path), remedy="create one first"
            )
        return DirectoryTargetSpec(path=str(path))
    # Block devices are often named by symbolic links: /dev/disk/by-id, /dev/mapper.
    if mode is not None and stat.S_ISBLK(mode):
        return BlockTargetSpec(path=str(path))
    if own is None:
        return FileTargetSpec(path=str(path))
    if not stat.S_ISREG(own):
        raise TargetUnsuitable(
            f"--to requires a new file, a regular file with --force, or a block device; this is {kind_of_file(own)}",
            where=str(path),
            remedy="name a file in it" if stat.S_ISDIR(own) else "name another path",
        )
    if not replace:
        raise AlreadyExists("the file already exists", where=str(path), remedy="--force replaces it")
    return FileTargetSpec(path=str(path))


def _mode(path: Path, *, follow: bool) -> int | None:
    """Return the file's mode, or None if it does not exist."""
    with atomic_file.mapped("the target", path):
        try:
            return os.stat(path, follow_symlinks=follow).st_mode
        except FileNotFoundError:
            return None


def _identity(request: Request, path: Path) -> str:
    """Return the transfer's identity: a hash of the options that change its result, not how it is done."""
    facts = (request.place.text, str(path), request.size, request.checksum, request.content_type)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
