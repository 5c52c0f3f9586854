"""Benchmark cases and goals, as data.

A case names its contenders by label; each is a way (`ways`) applied to an image (`images`) over a line (`serve`).
Contenders take turns.  A goal compares the medians of one label with the smallest of others, or with a number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Metric = Literal["wall", "cpu", "memory", "written", "fetched", "scratch"]
Line = Literal["full", "line", "latency", "stream"]

MEMORY_LIMIT = 192 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to get one image."""

    label: str
    way: str
    image: str
    line: Line = "full"
    checksum: bool = False
    """Ours only: the job carries the image's sha256."""
    memory_limit: int | None = None
    """Bytes: run in a control group of that size."""
    engine: str = "auto"
    python: str | None = None
    """Ours only: the interpreter of another environment, whose `cdi` is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Goal: `label`'s median is at most `limit` times the least of `against` and `extra` more.

    Without `against`, it is at most `limit`.
    """

    metric: Metric
    limit: float
    label: str = "ours"
    against: tuple[str, ...] = ()
    extra: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    title: str
    contenders: tuple[Contender, ...]
    goals: tuple[Goal, ...]


def _contenders(image: str, line: Line, labels: dict[str, str]) -> tuple[Contender, ...]:
    return tuple(Contender(label=label, way=way, image=image, line=line) for label, way in labels.items())


_NO_SCRATCH = Goal(metric="scratch", limit=0)
_SMALL = Goal(metric="memory", limit=MEMORY_LIMIT)

_QCOW2 = {
    "ours": "ours",
    "old path": "old",
    "nbdkit": "nbdkit",
    "curl -o": "curl",
    "local convert": "local",
}
_OTHERS = {"ours": "ours", "old path": "old", "nbdkit": "nbdkit"}
_STREAMED = "ours, streamed"


def _mapped(kind: str, size: str) -> Case:
    """Return the case of a format whose tables are read with ranges, and without them in the order of the file."""
    image = f"{size}.{kind}"
    # nbdkit requests compressed grains one by one, as it does the clusters of a compressed qcow2: that case shows it.
    others = {label: way for label, way in _OTHERS.items() if kind != "vmdk-stream" or label != "nbdkit"}
    contenders = (
        *_contenders(image, "full", others),
        Contender(label=_STREAMED, way="ours", image=image, line="stream"),
    )
    return Case(
        name=kind if size == "2g" else f"{kind}-{size}",
        title=f"{_MAPPED[kind]} over HTTP, {_SIZES[size]}",
        contenders=contenders,
        goals=(
            Goal(metric="wall", limit=0.45, against=("old path",)),
            _NO_SCRATCH,
            _SMALL,
            Goal(metric="wall", limit=1.1, label=_STREAMED, against=("ours",)),
            replace(_NO_SCRATCH, label=_STREAMED),
            replace(_SMALL, label=_STREAMED),
        ),
    )


def _wrapped(wrapper: str, programs: dict[str, str], size: str) -> Case:
    image = f"{size}.raw.{wrapper}"
    suffix = "" if size == "2g" else f"-{size}"
    return Case(
        name=f"raw-{wrapper}{suffix}",
        title=f"raw.{wrapper} over HTTP, {_SIZES[size]}",
        contenders=_contenders(image, "full", {"ours": "ours", **programs}),
        goals=(
            Goal(metric="wall", limit=1.1, against=tuple(programs)),
            # "Written once": the disk's own data, as the best plain pipeline writes it, and a little for the journal.
            Goal(metric="written", limit=1.05, against=tuple(programs)),
            _NO_SCRATCH,
            _SMALL,
        ),
    )


_SIZES = {
    "2g": "a 2 GiB disk with 1.2 GB of data",
    "10g": "a 10 GiB disk with 2.3 GB of data",
    "40g": "a sparse 40 GiB disk with 1.2 GB of data",
}
_MAPPED = {
    "vmdk": "vmdk, monolithicSparse,",
    "vmdk-stream": "vmdk, streamOptimized,",
    "vhdx": "vhdx, dynamic,",
    "vdi": "vdi, dynamic,",
    "vhd": "vhd, dynamic,",
}
_GZ = {"curl, pigz, dd": "pigz", "curl, gzip, dd": "gzip"}
_ZST = {"curl, zstd, dd": "zstd"}
_XZ = {"curl, xz -T0, dd": "xz"}


def _of_size(size: str) -> tuple[Case, ...]:
    """Return the cases that exist for both the disk of the goals and the large one."""
    what = _SIZES[size]
    suffix = "" if size == "2g" else f"-{size}"
    return (
        Case(
            name=f"qcow2c{suffix}",
            title=f"compressed qcow2 over HTTP, {what}",
            contenders=_contenders(f"{size}.qcow2c", "full", _QCOW2),
            goals=(
                Goal(metric="wall", limit=0.3, against=("old path",)),
                Goal(metric="cpu", limit=0.35, against=("old path",)),
                *((Goal(metric="cpu", limit=3.2),) if size == "2g" else ()),
                Goal(metric="written", limit=0.6, against=("old path",)),
                Goal(metric="wall", limit=0.7, against=("local convert",)),
                _NO_SCRATCH,
                _SMALL,
            ),
        ),
        Case(
            name=f"qcow2{suffix}",
            title=f"uncompressed qcow2 over HTTP, {what}",
            contenders=_contenders(f"{size}.qcow2", "full", _QCOW2),
            goals=(
                Goal(metric="wall", limit=0.3, against=("old path",)),
                Goal(metric="cpu", limit=0.25, against=("old path",)),
                _NO_SCRATCH,
                _SMALL,
            ),
        ),
        Case(
            name=f"raw{suffix}",
            title=f"raw over HTTP, {what}",
            contenders=_contenders(
                f"{size}.raw", "full", {"ours": "ours", "old path": "old", "curl, dd": "dd", "curl -o": "curl"}
            ),
            goals=(
                Goal(metric="wall", limit=0.4, against=("old path",)),
                Goal(metric="wall", limit=1.2, against=("curl, dd",)),
                _NO_SCRATCH,
                _SMALL,
            ),
        ),
        _wrapped("gz", _GZ, size),
        _wrapped("zst", _ZST, size),
        _wrapped("xz", _XZ, size),
        *(_mapped(kind, size) for kind in _MAPPED),
    )


def _lines() -> tuple[Case, ...]:
    words: dict[Line, str] = {"line": "on a line of 100 MB/s", "latency": "at 20 ms latency"}
    return tuple(
        Case(
            name=f"{image.removeprefix('2g.')}-{line}",
            title=f"{'compressed' if image.endswith('c') else 'uncompressed'} qcow2 {words[line]}, {_SIZES['2g']}",
            contenders=_contenders(
                image, line, {"ours": "ours", "curl, as many": "curl-many", "curl, one": "curl-null"}
            ),
            goals=(Goal(metric="wall", limit=1.1, against=("curl, as many",)), _SMALL),
        )
        for line in words
        for image in ("2g.qcow2c", "2g.qcow2")
    )


CASES: tuple[Case, ...] = (
    *_of_size("2g"),
    *_lines(),
    Case(
        name="sparse",
        title="a sparse 40 GiB disk against the 2 GiB disk with the same data, compressed qcow2",
        contenders=(
            Contender(label="ours", way="ours", image="40g.qcow2c"),
            Contender(label="ours, 2 GiB", way="ours", image="2g.qcow2c"),
        ),
        goals=(Goal(metric="wall", limit=1.2, against=("ours, 2 GiB",)), _SMALL),
    ),
    *(
        Case(
            name=f"sha256-{image.split('.', 1)[1]}",
            title=f"the sha256 check turned on, {image.split('.', 1)[1]}",
            contenders=(
                Contender(label="ours", way="ours", image=image, checksum=True),
                Contender(label="without", way="ours", image=image),
            ),
            goals=(Goal(metric="wall", limit=1.1, against=("without",)),),
        )
        for image in ("2g.qcow2c", "2g.qcow2", "2g.raw")
    ),
    *(
        Case(
            name=f"resume-{image.split('.', 1)[1]}",
            title=f"resume after kill -9 at 90 %, {image.split('.', 1)[1]}",
            contenders=(
                Contender(label="ours", way="resume", image=image),
                Contender(label="whole", way="ours", image=image),
            ),
            goals=(Goal(metric="wall", limit=0.2, against=("whole",)),),
        )
        for image in ("2g.qcow2c", "2g.raw", "2g.raw.gz")
    ),
    *(
        Case(
            name=f"cdi-upload-{image.split('.', 1)[1]}",
            title=f"cdi upload of {word} qcow2 on one machine, {_SIZES['2g']}",
            contenders=(
                Contender(label="ours", way="cdi-upload", image=image),
                Contender(label="import", way="ours", image=image),
                Contender(label="old path", way="old", image=image),
            ),
            # What the worker writes is not counted: it is a child of the supervisor, which outlives the command.
            goals=(Goal(metric="wall", limit=0.45, against=("old path",)), _SMALL),
        )
        for word, image in (("compressed", "2g.qcow2c"), ("uncompressed", "2g.qcow2"))
    ),
    Case(
        name="tiny",
        title="a 1 MiB image, the whole worker process",
        contenders=(Contender(label="ours", way="ours", image="tiny.raw"),),
        goals=(Goal(metric="cpu", limit=0.15),),
    ),
    *(
        Case(
            name=f"limit-{image.replace('.', '-')}",
            title=f"under a control group of 192 MiB: {image}",
            contenders=(
                Contender(label="ours", way="ours", image=image, memory_limit=MEMORY_LIMIT),
                Contender(label="unlimited", way="ours", image=image),
            ),
            goals=(_SMALL,),
        )
        for image in (
            "10g.qcow2c",
            "10g.qcow2",
            "10g.raw",
            "10g.raw.gz",
            "10g.raw.zst",
            "10g.raw.xz",
            "10g.vmdk",
            "10g.vhdx",
        )
    ),
    *_of_size("10g"),
    *(
        Case(
            name=f"upload-{image.split('.', 1)[1]}",
            title=f"upload over TLS through the proxy, {what}, {_SIZES['2g']}",
            contenders=(
                Contender(label="ours", way="upload-proxy", image=image),
                Contender(label="aiohttp", way="upload-aiohttp", image=image),
                Contender(label="no relay", way="upload", image=image),
            ),
            goals=(
                Goal(metric="wall", limit=1.0, against=("aiohttp",)),
                Goal(metric="cpu", limit=1.0, against=("aiohttp",)),
            ),
        )
        for image, what in (("2g.raw", "raw"), ("2g.qcow2c", "compressed qcow2"))
    ),
    Case(
        name="golden",
        title="a golden image from the poll to the offer, verified and boot-proven, compressed qcow2",
        contenders=(
            Contender(label="ours", way="golden", image="boot.qcow2c", checksum=True),
            Contender(label="by hand", way="by-hand", image="boot.qcow2c", checksum=True),
        ),
        goals=(Goal(metric="wall", limit=1.0, against=("by hand",), extra=5.0),),
    ),
)


def beside(case: Case, python: str) -> Case:
    """Return `case` with our contender also as another environment's `cdi`, and at most 3 % slower than that."""
    ours = next(contender for contender in case.contenders if contender.label == "ours")
    metrics: tuple[Metric, ...] = ("wall", "cpu")
    goals = (Goal(metric=metric, limit=1.03, against=("before",)) for metric in metrics)
    return replace(
        case,
        contenders=(*case.contenders, replace(ours, label="before", python=python)),
        goals=(*case.goals, *goals),
    )
