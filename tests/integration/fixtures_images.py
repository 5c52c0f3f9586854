"""Small disks in every format and compression, and what an import of one needs: sources, used targets, a check.

    def test_x(images, volume, importing):
        image = images.get("qcow2-zlib", "gz")    # made once, shared by all processes of the run
        volume.kind                               # "file", "grown", "block512", "block4096", "blunt"
        outcome = importing(FileSourceSpec(path=str(image.path)), volume, image)

Content is compared with the output of `qemu-img convert` for the same image.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import lzma
import os
import random
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from cdi.api.job import BlockTargetSpec, FileTargetSpec, Job, Outcome, Policy
from cdi.target import linux
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.corpus import with_gpt, with_iso, with_mbr
from tests.vmdk_writer import needs_qemu

MIB = 1 << 20
SIZE = 9 * MIB + 5 * 512
"""Size of the disk in bytes: no multiple of any cluster size but the smallest."""
DEVICE = 12 * MIB


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The way to make an image, and the expected result of its import."""

    format: str
    """The expected `Outcome.format`, which is also qemu-img's name."""
    options: tuple[str, ...] = ()
    """Options for ``qemu-img convert -o``."""
    compress: bool = False
    after: tuple[tuple[str, ...], ...] = ()
    """Commands to run on the finished image; ``{}`` is its path."""
    engine: str = "qemu"
    """The expected reader: "raw" and "qcow2" are the project's own."""
    make: Callable[[bytes], bytes] | None = None
    """A function that makes the image from the raw disk's bytes, where qemu-img does not."""


def qemu_io(*commands: str) -> tuple[str, ...]:
    return ("qemu-io", "-f", "qcow2", *(part for command in commands for part in ("-c", command)), "{}")


def qcow2(*options: str, compress: bool = False, after: tuple[tuple[str, ...], ...] = ()) -> Kind:
    return Kind(format="qcow2", options=options, compress=compress, after=after, engine="qcow2")


SCATTERED = tuple(f"write -P {97 + n} {(n * 37 % 100) * 65536} 65536" for n in range(0, 100, 3))

KINDS: dict[str, Kind] = {
    "raw": Kind(format="raw", engine="raw", make=lambda disk: disk),
    "raw-odd": Kind(format="raw", engine="raw", make=lambda disk: disk[: 3 * MIB + 77]),
    "raw-tiny": Kind(format="raw", engine="raw", make=lambda disk: b"GRUB" * 25),
    "raw-zeros": Kind(format="raw", engine="raw", make=lambda disk: bytes(2 * MIB)),
    "raw-gpt": Kind(format="raw", engine="raw", make=lambda disk: with_gpt(with_mbr(disk))),
    "iso": Kind(format="raw", engine="raw", make=lambda disk: with_iso(bytes(2048) + disk[2048 : 5 * MIB])),
    "qcow2-v2": qcow2("compat=0.10"),
    "qcow2-v3": qcow2("compat=1.1"),
    "qcow2-zlib": qcow2(compress=True),
    "qcow2-zstd": qcow2("compression_type=zstd", compress=True),
    "qcow2-v2-zlib-4k": qcow2("compat=0.10", "cluster_size=4k", compress=True),
    "qcow2-512": qcow2("cluster_size=512"),
    "qcow2-4k": qcow2("cluster_size=4k"),
    "qcow2-2M": qcow2("cluster_size=2M"),
    "qcow2-2M-zstd": qcow2("cluster_size=2M", "compression_type=zstd", compress=True),
    "qcow2-512-zlib": qcow2("cluster_size=512", compress=True),
    "qcow2-refcount-1": qcow2("refcount_bits=1", "cluster_size=32k"),
    "qcow2-lazy": qcow2("lazy_refcounts=on"),
    "qcow2-metadata": qcow2("preallocation=metadata"),
    "qcow2-falloc": qcow2("preallocation=falloc"),
    "qcow2-snapshot": qcow2(
        after=(
            ("qemu-img", "snapshot", "-c", "before", "{}"),
            qemu_io("write -P 17 0 192k", "write -P 18 6M 64k", "write -z 512k 64k"),
        )
    ),
    "qcow2-snapshot-zlib": qcow2(
        compress=True,
        after=(("qemu-img", "snapshot", "-c", "before", "{}"), qemu_io("write -P 17 0 192k", "write -c -P 7 1M 64k")),
    ),
    # Zero clusters with and without allocation, partial clusters, and discarded clusters.
    "qcow2-zeros": qcow2(
        after=(qemu_io("write -z 0 128k", "write -z -u 256k 512k", "write -z 1000k 4k", "discard 5M 1M"),)
    ),
    "qcow2-scattered": qcow2(after=(qemu_io(*SCATTERED),)),
    "qcow2-subclusters": qcow2("extended_l2=on", "cluster_size=128k"),
    "qcow2-subclusters-zeros": qcow2(
        "extended_l2=on",
        "cluster_size=64k",
        after=(qemu_io("write -z 0 100k", "write -z 1000k 4k", "write -P 5 7M 2k", "discard 5M 1M"),),
    ),
    "vmdk-2M": Kind(format="vmdk", make=needs_qemu),
    "vmdk-4M": Kind(format="vmdk", make=partial(needs_qemu, grain=8192)),
    "vmdk-sparse": Kind(format="vmdk", options=("subformat=monolithicSparse",), engine="mapped"),
    "vmdk-zeros": Kind(
        format="vmdk",
        options=("zeroed_grain=on",),
        engine="mapped",
        after=(("qemu-io", "-f", "vmdk", "-c", "write -z 0 128k", "-c", "write -z 5M 64k", "{}"),),
    ),
    "vmdk-stream": Kind(format="vmdk", options=("subformat=streamOptimized",), engine="mapped"),
    "vdi": Kind(format="vdi", engine="mapped"),
    "vdi-static": Kind(format="vdi", options=("static=on",), engine="mapped"),
    "vhd-dynamic": Kind(format="vpc", options=("subformat=dynamic", "force_size=on"), engine="mapped"),
    "vhd-fixed": Kind(format="vpc", options=("subformat=fixed", "force_size=on"), engine="raw"),
    # Virtual PC 2004 wrote a footer of 511 bytes.
    "vhd-fixed-511": Kind(
        format="vpc",
        options=("subformat=fixed", "force_size=on"),
        after=(("truncate", "--size=-1", "{}"),),
        engine="raw",
    ),
    "vhdx": Kind(format="vhdx", options=("block_size=1M",), engine="mapped"),
    "vhdx-fixed": Kind(format="vhdx", options=("subformat=fixed", "block_size=1M"), engine="mapped"),
}

REPRESENTATIVE = (
    *(
        "raw",
        "iso",
        "qcow2-v2",
        "qcow2-v3",
        "qcow2-zlib",
        "qcow2-zstd",
        "qcow2-snapshot",
        "qcow2-subclusters",
        "vmdk-2M",
    ),
    *("vmdk-sparse", "vmdk-stream", "vdi", "vhd-dynamic", "vhd-fixed", "vhdx"),
)
"""One image of each type, for sources that differ only in how they deliver bytes."""


def _gz(data: bytes) -> bytes:
    # Two members, as bgzip and log rotation write them.
    half = len(data) // 2
    return gzip.compress(data[:half], 1, mtime=0) + gzip.compress(data[half:], 1, mtime=0)


def _zst(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-1", "-c"], input=data, capture_output=True, check=True).stdout


def _tar(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("export")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo("export/" + "long name " * 20 + "disk")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


WRAPPERS: dict[str, tuple[tuple[str, ...], Callable[[bytes], bytes]]] = {
    "plain": ((), lambda data: data),
    "gz": (("gz",), _gz),
    "xz": (("xz",), lambda data: lzma.compress(data, preset=0)),
    "zst": (("zst",), _zst),
    "tar.gz": (("gz", "tar"), lambda data: gzip.compress(_tar(data), 1, mtime=0)),
}


def disk_bytes() -> bytes:
    """Return compressible and random data at odd offsets, holes, written zeros, and data in the last sector."""
    dice = random.Random(11)
    disk = bytearray(SIZE)
    for start, size in (
        (0, MIB),
        (2 * MIB - 512, MIB + 1024),
        (4 * MIB + 4096, 3 * MIB // 2),
        (13 * MIB // 2, 2 * MIB),
    ):
        disk[start : start + size] = dice.randbytes(size)
    for _ in range(40):
        start, size = dice.randrange(SIZE // 512 - 200) * 512, dice.choice([512, 4096, 20_000, 65_536])
        disk[start : start + size] = (b"compressible %08d\n" % start * (size // 22 + 1))[:size]
    disk[: 4 << 10] = b"no signature here"[:17].ljust(4 << 10, b".")
    disk[3 * MIB // 2 : 3 * MIB // 2 + 200_000] = bytes(200_000)
    disk[-512:] = b"end of the disk".ljust(512, b"!")
    return bytes(disk[:SIZE])


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image file and the disk that it contains."""

    name: str
    kind: Kind
    wrapper: str
    path: Path
    disk: bytes = field(repr=False)
    """The disk as QEMU reads it, in whole sectors."""

    @property
    def length(self) -> int:
        """The size of the uncompressed image in bytes."""
        return self.path.with_name("image.plain").stat().st_size

    @property
    def wrappers(self) -> tuple[str, ...]:
        return WRAPPERS[self.wrapper][0]

    def serve(self, root: Path) -> str:
        """Link the file into a server's directory and return its name there."""
        name = f"{self.name}.{self.wrapper}"
        if not (root / name).exists():
            os.link(self.path, root / name)
        return name

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass
class Images:
    """Images that are made on first use, by whichever process of the run needs them first."""

    directory: Path
    _disks: dict[str, bytes] = field(default_factory=dict, repr=False)

    def get(self, name: str, wrapper: str = "plain") -> Image:
        path = self.directory / name / f"image.{wrapper}"
        path.parent.mkdir(exist_ok=True)
        with open(self.directory / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            plain = path.parent / "image.plain"
            if not plain.exists():
                self._make(name, plain)
            if not path.exists():
                self._put(path, WRAPPERS[wrapper][1](plain.read_bytes()))
        if name not in self._disks:
            self._disks[name] = (path.parent / "oracle").read_bytes()
        return Image(name=name, kind=KINDS[name], wrapper=wrapper, path=path, disk=self._disks[name])

    @staticmethod
    def _put(path: Path, data: bytes) -> None:
        temporary = path.with_suffix(".new")
        temporary.write_bytes(data)
        temporary.rename(path)

    def _make(self, name: str, path: Path) -> None:
        kind, made, oracle = KINDS[name], path.parent / "making", path.parent / "oracle"
        if kind.make is not None:
            data = kind.make(disk_bytes())
            self._put(made, data)
            run("qemu-img", "convert", "-f", kind.format, "-O", "raw", str(made), str(oracle))
            made.rename(path)
            return
        base = self.directory / "disk"
        if not base.exists():
            self._put(base, disk_bytes())
        options = [part for option in kind.options for part in ("-o", option)]
        packed = ["-c"] if kind.compress else []
        run("qemu-img", "convert", *packed, "-f", "raw", "-O", kind.format, *options, str(base), str(made))
        for command in kind.after:
            run(*(str(made) if part == "{}" else part for part in command))
        run("qemu-img", "convert", "-f", kind.format, "-O", "raw", str(made), str(oracle))
        if not kind.after:
            assert oracle.read_bytes() == disk_bytes(), "qemu-img reads back what it wrote"
        made.rename(path)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    directory = base / "images"
    directory.mkdir(exist_ok=True)
    return Images(directory)


# --- targets ----------------------------------------------------------------------------------------------------


@contextmanager
def loop(backing: Path, size: int, sector: int) -> Iterator[str]:
    with open(backing, "wb") as file:
        file.truncate(size)
    device = run("losetup", "--find", "--show", "--sector-size", str(sector), str(backing))
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@pytest.fixture(scope="session")
def loop_devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, str]]:
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("needs root")
    base = tmp_path_factory.mktemp("loops")
    with loop(base / "512", DEVICE, 512) as small, loop(base / "4096", DEVICE, 4096) as large:
        yield {512: small, 4096: large}


_DIRT = random.Random(3).randbytes(64 << 10) * (DEVICE // (64 << 10))


@dataclass
class Volume:
    """A target with old data."""

    kind: str
    directory: Path
    device: str | None = None

    def __post_init__(self) -> None:
        if self.device is not None:
            with open(self.device, "r+b", buffering=0) as device:
                device.write(_DIRT)
                os.fsync(device.fileno())
        else:
            self.partial.write_bytes(_DIRT[: 3 * MIB])

    @property
    def disk(self) -> Path:
        return self.directory / "disk.img"

    @property
    def partial(self) -> Path:
        """The path of an unfinished disk."""
        return self.directory / ".disk.img.partial"

    @property
    def target(self) -> FileTargetSpec | BlockTargetSpec:
        return FileTargetSpec(path=str(self.disk)) if self.device is None else BlockTargetSpec(path=self.device)

    def content(self) -> bytes:
        return Path(self.device or self.disk).read_bytes()

    def is_as_it_was(self) -> bool:
        """Return whether a device still has its old data."""
        return self.content() == _DIRT

    def is_wiped(self) -> bool:
        """Return whether neither a disk nor a part of one is left: no files, or a device of zeros."""
        if self.device is None:
            return os.listdir(self.directory) == []
        return self.content().count(0) == DEVICE


VOLUMES = ("file", "grown", "block512", "block4096", "blunt")


def block_only(kind: str) -> bool:
    return kind not in ("file", "grown")


@contextmanager
def blunt_devices() -> Iterator[None]:
    """Make block devices support neither discard nor zeroing, so that every zero must be written."""
    real = linux.fallocate, linux.zero_out

    def refuse(fd: int, *rest: int) -> None:
        import stat

        if stat.S_ISBLK(os.fstat(fd).st_mode):
            raise OSError(95, "not supported")
        real[0](fd, *rest)

    def refuse_ioctl(fd: int, offset: int, length: int) -> None:
        raise OSError(95, "not supported")

    linux.fallocate, linux.zero_out = refuse, refuse_ioctl  # type: ignore[assignment]
    try:
        yield
    finally:
        linux.fallocate, linux.zero_out = real


@pytest.fixture
def volumes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Volume]]:
    """Return a function that makes a used volume of a kind."""

    def make(kind: str) -> Volume:
        directory = tmp_path / f"volume-{kind}"
        directory.mkdir()
        if not block_only(kind):
            return Volume(kind, directory)
        devices: dict[int, str] = request.getfixturevalue("loop_devices")
        return Volume(kind, directory, devices[4096 if kind == "block4096" else 512])

    yield make


# --- the import -------------------------------------------------------------------------------------------------


@dataclass
class Importing:
    """A runner of imports in this process that checks everything required of a successful one."""

    directory: Path

    def job(self, source: object, volume: Volume, **more: object) -> Job:
        scratch = self.directory / "scratch"
        scratch.mkdir(exist_ok=True)
        defaults = {
            "id": "test",
            "source": source,
            "target": volume.target,
            "journal": str(self.directory / "journal"),
            "scratch": str(scratch),
            "policy": Policy(discover_checksum=False, retries=3, stall_timeout=30),
        }
        return Job(**(defaults | more))  # type: ignore[arg-type]

    def run(self, job: Job) -> Outcome:
        return transfer(job, TransferControl(job))

    def __call__(
        self, source: object, volume: Volume, image: Image, *, preallocated: bool = False, **more: object
    ) -> Outcome:
        """Run an import and check it."""
        if volume.kind == "grown":
            more.setdefault("size", grown(image))
        job = self.job(source, volume, **more)
        if volume.kind == "blunt":
            with blunt_devices():
                outcome = self.run(job)
        else:
            outcome = self.run(job)
        assert outcome.failure is None, outcome.failure
        self.check(outcome, job, volume, image, preallocated=preallocated)
        return outcome

    def check(self, outcome: Outcome, job: Job, volume: Volume, image: Image, *, preallocated: bool = False) -> None:
        size = len(image.disk)
        if volume.device is not None:
            size = DEVICE
        elif volume.kind == "grown":
            size = -(-grown(image) // 512) * 512
        found = volume.content()
        assert len(found) == size
        same = found[: len(image.disk)] == image.disk
        assert same, f"the disk differs at {first_difference(found, image.disk)}"
        assert found.count(0, len(image.disk)) == size - len(image.disk), "beyond the image there are zeros"
        assert (outcome.format, outcome.disk_size) == (image.kind.format, size)
        assert outcome.wrappers[len(outcome.wrappers) - len(image.wrappers) :] == image.wrappers
        assert outcome.virtual_size in {len(image.disk), image.length if image.kind.format == "raw" else None}
        if volume.device is None:
            assert volume.disk.stat().st_mode & 0o7777 == 0o660
            most = stored_at_most(image.disk, outcome.path)
            assert preallocated or volume.disk.stat().st_blocks * 512 <= most, "holes are not stored"
            assert sorted(os.listdir(volume.directory)) == ["disk.img"]
        assert not os.path.exists(job.journal or "")
        assert os.listdir(job.scratch or "") == []


def grown(image: Image) -> int:
    return len(image.disk) + MIB + 700


def first_difference(left: bytes, right: bytes) -> int:
    return next((at for at in range(min(len(left), len(right))) if left[at] != right[at]), min(len(left), len(right)))


def stored_at_most(disk: bytes, path: str | None) -> int:
    """Return the maximum allocation in bytes: the blocks with data, and one for the file system's metadata."""
    # QEMU's mirror copies in pieces of 1 MiB and detects zeros in whole pieces.
    block = MIB if path in ("qemu-file", "qemu-spool") else 64 << 10
    zero = bytes(block)
    return block + sum(block for at in range(0, len(disk), block) if not zero.startswith(disk[at : at + block]))


@pytest.fixture
def importing(tmp_path: Path) -> Importing:
    return Importing(tmp_path)
