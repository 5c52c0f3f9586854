"""Contenders as commands.

Every way ends with the disk on stable storage, as ours does: if a program does not flush, `sync FILE` is part of the
command.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_lib.cases import Contender
from bench_lib.images import Image
from bench_lib.uploads import Upload

_CURL = "curl --silent --show-error --fail --noproxy '*'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Parameters of one run."""

    contender: Contender
    image: Image
    url: str
    work: Path
    """An empty directory."""
    connections: int
    """How many our last run over this line opened."""
    checksum: str | None = None

    @property
    def out(self) -> Path:
        return self.work / "disk.img"

    @property
    def scratch(self) -> Path:
        return self.work / "scratch.img"

    @property
    def python(self) -> str:
        return self.contender.python or sys.executable


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    needs: tuple[str, ...]
    """Programs."""
    command: Callable[[Task], list[str]]
    makes_disk: bool = True
    """The result is the raw disk, and can be compared."""
    prepare: Callable[[Task], None] | None = None
    """Done before the clock starts."""
    finish: Callable[[Task], None] | None = None
    """Done after the clock has stopped, even if the command failed."""
    cpu_beside: Callable[[Task], float] = lambda _: 0.0
    """Return the processor seconds so far of what runs beside the command and counts as a part of it."""


def _shell(text: str) -> list[str]:
    return ["bash", "-c", f"set -eu -o pipefail; {text}"]


def _quoted(task: Task) -> dict[str, str]:
    return {
        "url": shlex.quote(task.url),
        "out": shlex.quote(str(task.out)),
        "scratch": shlex.quote(str(task.scratch)),
        "local": shlex.quote(str(task.image.path)),
        "format": task.image.format,
        "size": str(task.image.virtual_size),
    }


def _old(task: Task) -> list[str]:
    """Return the steps of the existing importer: download to scratch over one connection, convert, resize."""
    return _shell(
        "{curl} -o {scratch} {url}; qemu-img convert -t writeback -f {format} -O raw {scratch} {out}; "
        "qemu-img resize -q -f raw {out} {size}; sync {out}; rm {scratch}".format(curl=_CURL, **_quoted(task))
    )


def _nbdkit(task: Task) -> list[str]:
    inner = "qemu-img convert -f {format} -W -m 16 -O raw $uri {out}".format(**_quoted(task))
    return _shell(
        f"nbdkit -r -U - curl {shlex.quote(task.url)} --run {shlex.quote(inner)}; sync {_quoted(task)['out']}"
    )


def _local(task: Task) -> list[str]:
    return _shell(
        "qemu-img convert -W -m 16 -t none -f {format} -O raw {local} {out}; sync {out}".format(**_quoted(task))
    )


def _curl(task: Task) -> list[str]:
    return _shell("{curl} -o {out} {url}; sync {out}".format(curl=_CURL, **_quoted(task)))


def _curl_null(task: Task) -> list[str]:
    return _shell(f"{_CURL} -o /dev/null {shlex.quote(task.url)}")


def _curl_many(task: Task) -> list[str]:
    """Fetch the same bytes over as many connections as ours opened."""
    length, count = task.image.path.stat().st_size, max(1, task.connections)
    step = -(-length // count)
    runs = [f"{start}-{min(start + step, length) - 1}" for start in range(0, length, step)]
    fetches = " ".join(
        f"{_CURL} -r {run} -o /dev/null {shlex.quote(task.url)} & p{i}=$!;" for i, run in enumerate(runs)
    )
    return _shell(fetches + " " + "; ".join(f"wait $p{i}" for i in range(len(runs))))


def _decompress(program: str) -> Callable[[Task], list[str]]:
    def command(task: Task) -> list[str]:
        return _shell(
            "{curl} {url} | {program} | dd of={out} bs=1M iflag=fullblock conv=sparse,fsync status=none; "
            "truncate -s {size} {out}".format(curl=_CURL, program=program, **_quoted(task))
        )

    return command


def _dd(task: Task) -> list[str]:
    return _shell(
        "{curl} {url} | dd of={out} bs=1M iflag=fullblock oflag=direct conv=sparse,fsync status=none; "
        "truncate -s {size} {out}".format(curl=_CURL, **_quoted(task))
    )


# --- ours ---------------------------------------------------------------------------------------------------------


def _job(task: Task, **policy: object) -> Path:
    path = task.work / "job.json"
    body: dict[str, Any] = {
        "id": "bench",
        "source": {"kind": "http", "url": task.url},
        "target": {"kind": "file", "path": str(task.out)},
        "journal": str(task.work / "journal"),
        "policy": {"engine": task.contender.engine, "discover_checksum": False, **policy},
    }
    if task.checksum is not None:
        body["checksum"] = f"sha256:{task.checksum}"
    path.write_text(json.dumps(body))
    (task.work / "status").mkdir(exist_ok=True)
    return path


def _worker(task: Task, job: Path) -> list[str]:
    return [task.python, "-P", "-m", "cdi.worker", "run", str(job), "--status-dir", str(task.work / "status")]


def _ours(task: Task) -> list[str]:
    return _worker(task, _job(task))


_SLOW_TIMEOUT = 30.0
_KILL_AT = 0.9


def _prepare_resume(task: Task) -> None:
    """Run slowly until 90 %, and kill the run; raise SystemExit if it ends earlier."""
    job = _job(task, bandwidth=max(1, int(task.image.path.stat().st_size / _SLOW_TIMEOUT)))
    status = task.work / "status"
    with (task.work / "prepare.log").open("wb") as log:
        process = subprocess.Popen(
            _worker(task, job), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 20 * _SLOW_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise SystemExit(f"bench: the run to resume exited early with status {process.returncode}")
            try:
                seen = json.loads((status / "progress.json").read_bytes())
            except FileNotFoundError:
                seen = {}
            if seen.get("total") and seen["done"] >= _KILL_AT * seen["total"]:
                return
            time.sleep(0.05)
        raise SystemExit("bench: the run to resume did not reach 90 %")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if (status / "outcome.json").exists():
            raise SystemExit("bench: the run to resume ended before it could be killed")
        _job(task)  # the second run is not slowed


def _in_home(task: Task, commands: str) -> list[str]:
    """Return commands in a CDI_HOME of their own, which leave one volume."""
    home = shlex.quote(str(task.work / "home"))
    programs = shlex.quote(str(Path(task.python).parent))
    link = f"ln -s {home}/volumes/default/*/disk.img {shlex.quote(str(task.out))}"
    return _shell(f"export CDI_HOME={home} PATH={programs}:$PATH; {commands}; {link}")


def _publish_checksum(task: Task) -> None:
    """Write the checksum file beside the image, so that the poll finds the digest and the import verifies it."""
    (task.image.path.parent / "SHA256SUMS").write_text(f"{task.checksum}  {task.image.path.name}\n")


def _golden(task: Task) -> list[str]:
    add = "cdi golden add {url} --name os --schedule @yearly --proof boot --wait".format(**_quoted(task))
    return _in_home(task, add)


def _by_hand(task: Task) -> list[str]:
    fetch = "cdi import {url} --name os --checksum sha256:{digest}".format(digest=task.checksum, **_quoted(task))
    return _in_home(task, f"{fetch}; cdi boot-check os")


def _cdi_upload(task: Task) -> list[str]:
    return _in_home(task, "cdi upload {local} os".format(**_quoted(task)))


def _end_supervisor(task: Task) -> None:
    """Wait until no process uses the CDI_HOME any more."""
    from cdi import atomic_file
    from cdi.local.home import Home

    lock = Home.find(task.work / "home").supervisor_lock
    deadline = time.monotonic() + 60
    while atomic_file.is_locked(lock) and time.monotonic() < deadline:
        time.sleep(0.1)


# --- uploads ------------------------------------------------------------------------------------------------------

_uploads: dict[Path, Upload] = {}
"""By the directory of their run."""


def _upload(relay: str | None) -> Way:
    def prepare(task: Task) -> None:
        _uploads[task.work] = Upload(task.work, task.out, task.image.virtual_size, relay)

    def finish(task: Task) -> None:
        if task.work in _uploads:
            _uploads.pop(task.work).close()

    return Way(
        needs=("curl",),
        command=lambda task: _uploads[task.work].command(task.image.path),
        prepare=prepare,
        finish=finish,
        cpu_beside=lambda task: _uploads[task.work].cpu(),
    )


def outcome(task: Task) -> dict[str, Any]:
    """Return the outcome that our worker reported; empty for other ways."""
    path = task.work / "status" / "outcome.json"
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return found


WAYS: dict[str, Way] = {
    "ours": Way(needs=(), command=_ours),
    "resume": Way(needs=(), command=_ours, prepare=_prepare_resume),
    "golden": Way(needs=("cdi", "qemu-img"), command=_golden, prepare=_publish_checksum, finish=_end_supervisor),
    "by-hand": Way(needs=("cdi", "qemu-img"), command=_by_hand, finish=_end_supervisor),
    "cdi-upload": Way(needs=("cdi",), command=_cdi_upload, finish=_end_supervisor),
    "old": Way(needs=("curl", "qemu-img"), command=_old),
    "nbdkit": Way(needs=("nbdkit", "qemu-img"), command=_nbdkit),
    "local": Way(needs=("qemu-img",), command=_local),
    "curl": Way(needs=("curl",), command=_curl, makes_disk=False),
    "curl-null": Way(needs=("curl",), command=_curl_null, makes_disk=False),
    "curl-many": Way(needs=("curl",), command=_curl_many, makes_disk=False),
    "dd": Way(needs=("curl", "dd"), command=_dd),
    "pigz": Way(needs=("curl", "pigz", "dd"), command=_decompress("pigz -dc")),
    "gzip": Way(needs=("curl", "gzip", "dd"), command=_decompress("gzip -dc")),
    "zstd": Way(needs=("curl", "zstd", "dd"), command=_decompress("zstd -q -dc")),
    "upload": _upload(None),
    "upload-proxy": _upload("proxy"),
    "upload-aiohttp": _upload("aiohttp"),
    "xz": Way(needs=("curl", "xz", "dd"), command=_decompress("xz -T0 -dc")),
}


_IMPORT_ALL = """
import importlib, pkgutil, cdi
for found in pkgutil.walk_packages(cdi.__path__, "cdi."):
    if found.name.split(".")[1] in {"api", "image", "source", "codec", "target", "verify", "transfer", "worker"}:
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
"""


def warm_programs(way: Way) -> None:
    """Read the way's programs into the page cache, so that loading them from disk is not measured."""
    commands = [[program, "--version"] for program in way.needs]
    if not way.needs:
        commands = [
            [sys.executable, "-c", _IMPORT_ALL],
            ["qemu-img", "--version"],
            ["qemu-storage-daemon", "--version"],
        ]
    for command in commands:
        subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)


def missing(way: Way) -> list[str]:
    return [program for program in way.needs if shutil.which(program) is None]
