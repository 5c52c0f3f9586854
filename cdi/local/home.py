"""Layout of CDI_HOME, the directory of all persistent state of the embedded backend.

    objects/<plural>/<namespace>/<name>.json   the store (`cdi.store.file_store`)
    volumes/<namespace>/<name>/disk.img        the volumes; an archive is unpacked into the directory itself
    workers/<claim's uid>/                     the attempts for one volume, see `WorkerDirectory`
    tasks/poll-<cron's uid>/                   the newest poll of a DataImportCron (`cdi.local.tasks`)
    tasks/proof-<claim's uid>/                 the newest boot proof of a volume
    environments/<namespace>/<name>.json       variables that a DataVolume's workers get (`cdi.local.environment`)
    environments/.crons/<namespace>/<name>.json  the same for the polls and imports of a DataImportCron
    direct/<name>/                             imports without a DataVolume (`cdi.local.resumable_dirs`)
    direct.lock, supervisor.lock, supervisor.log

Directories are created with mode 0700.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cdi import atomic_file
from cdi.api.errors import InternalError, TargetPermission, TargetUnsuitable
from cdi.store.base import Key
from cdi.store.files import ELSEWHERE

DISK = "disk.img"
_UID = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z-]{0,63}")


@dataclass(frozen=True, slots=True)
class WorkerDirectory:
    """The files through which a volume's workers and their supervisor communicate.

    The worker reads `job` and `control`, and writes `progress`, `outcome` and `log`. `guard` is locked from before a
    worker starts until its last descriptor is closed, and so shows whether one is alive without knowing its process
    id; `lock` is the worker's own.
    """

    path: Path

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def attempt(self) -> Path:
        return self.path / "attempt.json"

    @property
    def progress(self) -> Path:
        return self.path / "progress.json"

    @property
    def outcome(self) -> Path:
        return self.path / "outcome.json"

    @property
    def control(self) -> Path:
        return self.path / "control.json"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def guard(self) -> Path:
        return self.path / "guard"

    @property
    def starting(self) -> Path:
        """The lock that is held while a worker is started."""
        return self.path / "start.lock"

    @property
    def stopping(self) -> Path:
        """The marker file, created when a worker was first asked to stop."""
        return self.path / "stopping"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def scratch(self) -> Path:
        return self.path / "scratch"

    @property
    def inputs(self) -> Path:
        """The directory of Secrets and ConfigMaps as files, while a worker needs them."""
        return self.path / "inputs"


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below one CDI_HOME; only `find`, `check` and `make` access the disk."""

    root: Path

    @classmethod
    def find(cls, root: Path | None = None, environment: Mapping[str, str] | None = None) -> Self:
        """Return the home at `root`, $CDI_HOME, $XDG_DATA_HOME/cdi or ~/.local/share/cdi, whichever is given first.

        Its path is made absolute.
        """
        environment = os.environ if environment is None else environment
        if root is None:
            named, data = environment.get("CDI_HOME"), environment.get("XDG_DATA_HOME")
            if named:
                root = Path(named)
            elif data and Path(data).is_absolute():
                root = Path(data) / "cdi"
            else:
                root = Path("~/.local/share/cdi")
        try:
            return cls(root.expanduser().absolute())
        except RuntimeError as error:
            raise TargetPermission("this user has no home directory", remedy="set CDI_HOME") from error
        except FileNotFoundError as error:
            raise TargetUnsuitable(
                "CDI_HOME is a relative path, and the current directory was removed",
                where=str(root),
                remedy="change to another directory, or set CDI_HOME to an absolute path",
            ) from error

    def check(self) -> None:
        """Raise a `TargetError` if CDI_HOME is unusable: a file, a dangling link, or inaccessible.

        A missing directory is accepted: it is empty, and the first command that writes creates it.
        """
        with self.mapped("CDI_HOME"):
            try:
                is_directory = stat.S_ISDIR(self.root.stat().st_mode)
            except FileNotFoundError:
                if not self.root.is_symlink():
                    return
                raise self._unsuitable("a symbolic link to nothing") from None
        if not is_directory:
            raise self._unsuitable("not a directory")

    def make(self) -> None:
        """Create missing directories; raise a `TargetError`."""
        self.check()
        with self.mapped("CDI_HOME"):
            for directory in (self.root, self.objects, self.volumes, self.workers):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def mapped(self, what: str) -> AbstractContextManager[None]:
        """Convert every `OSError` raised inside to a `TargetError` about `what`, which is kept in CDI_HOME."""
        return atomic_file.mapped(what, self.root, elsewhere=ELSEWHERE)

    def _unsuitable(self, what: str) -> TargetUnsuitable:
        return TargetUnsuitable(f"CDI_HOME is {what}", where=str(self.root), remedy=ELSEWHERE)

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def workers(self) -> Path:
        return self.root / "workers"

    @property
    def tasks(self) -> Path:
        return self.root / "tasks"

    @property
    def environments(self) -> Path:
        return self.root / "environments"

    @property
    def direct(self) -> Path:
        return self.root / "direct"

    @property
    def direct_lock(self) -> Path:
        return self.root / "direct.lock"

    @property
    def supervisor_lock(self) -> Path:
        return self.root / "supervisor.lock"

    @property
    def supervisor_log(self) -> Path:
        return self.root / "supervisor.log"

    def volume(self, namespace: str, name: str) -> Path:
        """Return the directory of a PVC; raise `InvalidManifest` for invalid names."""
        key = Key.of("persistentvolumeclaims", namespace, name)
        return self.volumes / key.namespace / key.name

    def disk(self, namespace: str, name: str) -> Path:
        return self.volume(namespace, name) / DISK

    def task(self, task: str, uid: str) -> Path:
        """Return the directory of the newest poll or proof for the object with this UID."""
        if not _UID.fullmatch(uid):
            raise InternalError(f"{uid[:80]!r} is not a uid")
        return self.tasks / f"{task}-{uid}"

    def worker(self, uid: str) -> WorkerDirectory:
        if not _UID.fullmatch(uid):
            raise InternalError(f"{uid[:80]!r} is not a uid")
        return WorkerDirectory(self.workers / uid)
