"""Clone worker: ``python -m cdi.local.clone run JOB.json --status-dir DIR``.

Disks share blocks if the file system supports it (FICLONE). Otherwise data is copied inside the kernel
(copy_file_range(2)) or through a buffer; holes are preserved. The copy is written to a temporary name, synced and
renamed. The process keeps the protocol of `cdi.worker`: a lock, progress, one outcome; SIGTERM ends it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from cdi import atomic_file
from cdi.api.errors import (
    CdiError,
    InternalError,
    Interrupted,
    InvalidManifest,
    SourceNotFound,
    TargetBusy,
    TargetIo,
    TargetTooSmall,
    TargetUnsuitable,
)
from cdi.api.job import Failure, Outcome, Progress
from cdi.local.home import WorkerDirectory
from cdi.logs import configure_worker, fields
from cdi.reconcile.actions import CloneJob
from cdi.target.errors import map_os_errors

LOG = logging.getLogger(__name__)
_FICLONE = 0x40049409
_CHUNK_SIZE = 64 << 20
_REPORT = 0.5
_NOT_HERE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY)
_DISK_MODE = 0o660


class Cloner:
    """One clone; `report` is called with the progress about twice a second."""

    def __init__(self, job: CloneJob, report: Callable[[Progress], None]) -> None:
        self._job = job
        self._report = report
        self._done = 0
        self._total = 0
        self._written = 0
        self._reported = 0.0
        self._shared = True
        self._cancelled = False

    def cancel(self) -> None:
        """Make the copy end with `Interrupted` at the next chunk; may be called by a signal handler."""
        self._cancelled = True

    def run(self) -> Outcome:
        """Run the clone and return its outcome.

        Raises `SourceNotFound`, `TargetTooSmall`, `TargetFull`, `TargetIo`, `TargetPermission` or `Interrupted`.
        """
        began = time.monotonic()
        with map_os_errors(self._job.target, named=True):
            size = self._clone_tree() if self._job.content == "archive" else self._clone_disk()
        return Outcome(
            id=self._job.id,
            format="archive" if self._job.content == "archive" else "raw",
            path="reflink" if self._shared else "copy",
            virtual_size=size,
            disk_size=size,
            verified_by=("length",),
            written=self._written,
            preallocated=self._job.preallocation and self._job.content == "kubevirt",
            seconds=round(time.monotonic() - began, 3),
        )

    # --- a disk -----------------------------------------------------------------------------------------------

    def _clone_disk(self) -> int:
        with contextlib.ExitStack() as stack:
            source = _open_source(self._job.source)
            stack.callback(os.close, source)
            length = os.fstat(source).st_size
            size = length if self._job.size is None else self._job.size
            if size < length:
                raise TargetTooSmall(f"the source disk has {length} bytes, the target {size}", where=self._job.target)
            self._total = length
            target = Path(self._job.target)
            partial = target.with_name(f".{target.name}.clone")
            partial.unlink(missing_ok=True)
            stack.callback(partial.unlink, missing_ok=True)
            output = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, output)
            self._copy(source, output, length)
            os.ftruncate(output, size)
            if self._job.preallocation:
                _preallocate(output, size)
            if os.fstat(source).st_size != length:
                raise TargetIo("the source's size changed during the clone", where=self._job.source)
            os.fchmod(output, _DISK_MODE)
            os.fsync(output)
            partial.replace(target)
            atomic_file.sync(target.parent)
        self._tell("done", force=True)
        return size

    def _copy(self, source: int, output: int, length: int) -> None:
        """Copy the content of one file, preserving holes."""
        base = self._done
        try:
            fcntl.ioctl(output, _FICLONE, source)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
        else:
            self._done = base + length
            return
        self._shared = False
        os.ftruncate(output, length)
        in_kernel = True
        for begin, end in _extents(source, length):
            offset = begin
            while offset < end:
                if self._cancelled:
                    raise Interrupted("the clone was stopped")
                piece = min(_CHUNK_SIZE, end - offset)
                copied = 0
                if in_kernel:
                    try:
                        copied = os.copy_file_range(source, output, piece, offset, offset)
                    except OSError as error:
                        if error.errno not in _NOT_HERE:
                            raise
                        in_kernel = False
                if not copied:
                    copied = _copy_piece(source, output, min(piece, 1 << 20), offset)
                if not copied:
                    raise TargetIo("the source was truncated during the clone", where=self._job.source)
                offset += copied
                self._written += copied
                self._done = base + offset
                self._tell("transferring")
        self._done = base + length

    # --- a directory ------------------------------------------------------------------------------------------

    def _clone_tree(self) -> int:
        source, target = Path(self._job.source), Path(self._job.target)
        if not source.is_dir():
            raise SourceNotFound("the source volume does not exist", where=str(source))
        if not target.is_dir():
            raise TargetUnsuitable("an archive requires a directory", where=str(target))
        self._total = sum(s.st_size for _, _, s in _walk(source) if stat.S_ISREG(s.st_mode))
        for entry in target.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        links: dict[tuple[int, int], Path] = {}
        directories: list[tuple[Path, os.stat_result]] = []
        for path, relative, status in _walk(source):
            self._clone_entry(path, target / relative, status, links)
            if stat.S_ISDIR(status.st_mode):
                directories.append((target / relative, status))
        # Deepest first, so that read-only directories get their mode after their content.
        for directory, status in reversed(directories):
            _dress(directory, status)
        os.sync()
        self._tell("done", force=True)
        return self._total

    def _clone_entry(
        self, path: Path, target: Path, status: os.stat_result, links: dict[tuple[int, int], Path]
    ) -> None:
        if stat.S_ISDIR(status.st_mode):
            target.mkdir(mode=0o700)
        elif stat.S_ISLNK(status.st_mode):
            target.symlink_to(os.readlink(path))
            os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
        elif stat.S_ISREG(status.st_mode):
            known = links.get((status.st_dev, status.st_ino))
            if known is not None:
                os.link(known, target)
                self._done += status.st_size
                return
            if status.st_nlink > 1:
                links[status.st_dev, status.st_ino] = target
            with contextlib.ExitStack() as stack:
                source = _open_source(str(path))
                stack.callback(os.close, source)
                output = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, output)
                self._copy(source, output, os.fstat(source).st_size)
            _dress(target, status)
        else:
            raise TargetUnsuitable("only files, directories and links can be cloned", where=str(path))

    def _tell(self, phase: str, *, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._reported >= _REPORT:
            self._reported = now
            self._report(
                Progress(
                    phase="done" if phase == "done" else "transferring",
                    done=self._done,
                    total=self._total,
                    written=self._written,
                )
            )


def main(arguments: list[str]) -> int:
    """Run the worker and return the exit status, that of its error (docs/reference/errors.md)."""
    if len(arguments) != 4 or arguments[0] != "run" or arguments[2] != "--status-dir":
        sys.stderr.write("usage: python -m cdi.local.clone run JOB.json --status-dir DIR\n")
        return InvalidManifest.exit_status
    configure_worker()
    directory = WorkerDirectory(Path(arguments[3]))
    with atomic_file.locked(directory.lock, wait=False) as lock:
        if lock is None:
            busy = TargetBusy("another worker runs this job", where=str(directory.path))
            LOG.error(busy.message, extra=fields(code=busy.code))
            return busy.exit_status
        outcome = _carry_out(Path(arguments[1]), directory)
        atomic_file.write(directory.outcome, outcome.to_json().encode(), single_writer=True)
    if outcome.failure is not None:
        LOG.error(outcome.failure.message, extra=fields(code=outcome.failure.code))
        return outcome.failure.exit_status
    return 0


def _carry_out(job_path: Path, directory: WorkerDirectory) -> Outcome:
    identity = ""
    try:
        job = CloneJob.from_json(atomic_file.read(job_path) or b"")
        identity = job.id

        def report(progress: Progress) -> None:
            with contextlib.suppress(OSError):
                # The file system may be full; the outcome reports that.
                atomic_file.write(directory.progress, progress.to_json().encode(), fsync=False)

        cloner = Cloner(job, report)

        def stop(_number: int, _frame: FrameType | None) -> None:
            cloner.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        return cloner.run()
    except CdiError as error:
        return Outcome(id=identity, failure=Failure.from_error(error))
    except Exception as error:  # noqa: BLE001  reported in the outcome
        return Outcome(id=identity, failure=Failure.from_error(InternalError(f"{type(error).__name__}: {error}")))


def _open_source(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise SourceNotFound("the source volume has no disk", where=path) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SourceNotFound("the source is not a regular file", where=path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceNotFound("the source is not a regular file", where=path)
    return descriptor


def _extents(descriptor: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the data extents of a file, or the whole file if the file system does not report holes."""
    offset = 0
    while offset < length:
        try:
            begin = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            yield offset, length
            return
        end = min(os.lseek(descriptor, begin, os.SEEK_HOLE), length)
        yield begin, end
        offset = end


def _copy_piece(source: int, output: int, length: int, offset: int) -> int:
    data = os.pread(source, length, offset)
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(output, view[done:], offset + done)
    return done


def _preallocate(output: int, size: int) -> None:
    try:
        os.posix_fallocate(output, 0, size)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise


def _walk(root: Path) -> Iterator[tuple[Path, Path, os.stat_result]]:
    """Yield every entry below `root`, directories before their content; symbolic links are not followed."""
    stack = [root]
    while stack:
        directory = stack.pop()
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                path = Path(entry.path)
                status = entry.stat(follow_symlinks=False)
                yield path, path.relative_to(root), status
                if stat.S_ISDIR(status.st_mode):
                    stack.append(path)


def _dress(path: Path, status: os.stat_result) -> None:
    os.chown(path, status.st_uid, status.st_gid)
    path.chmod(stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
