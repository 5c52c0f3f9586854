"""Images of the benchmark: real file data in ext4 disks, built once and cached.

The data are this machine's own files below /usr, in an order that is the same everywhere (by the digest of the path),
so that programs, libraries, text and compressed files mix as they do in a guest.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERSION = 3
"""Changes with anything below that changes the images."""

_BOOT_SECTOR = (
    bytes.fromhex(
        "fa31c08ed8fc"  # cli; xor ax,ax; mov ds,ax; cld
        "baf803be267c"  # mov dx,0x3f8 (the serial port); mov si,text
        "ac84c07412"  # next: lodsb; test al,al; jz done
        "88c383c205ec83ea05a82074f5"  # wait until the port is ready
        "88d8eeebe9"  # mov al,bl; out dx,al; jmp next
        "f4ebfd"  # done: hlt; jmp done
    )
    + b"\r\nbench login: \0"
).ljust(510, b"\0") + b"\x55\xaa"
"""A guest that prints a login prompt; the first kilobyte of an ext4 file system is unused."""

_MAX_FILE = 128 << 20
_ROOTS = ("/usr", "/opt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Raw disk from which every format is converted; sizes in bytes."""

    size: int
    data: int


DISKS = {
    "2g": Disk(size=2 << 30, data=1_200_000_000),
    "10g": Disk(size=10 << 30, data=2_300_000_000),
    "40g": Disk(size=40 << 30, data=1_200_000_000),
}
QUICK_DISKS = {
    "2g": Disk(size=128 << 20, data=40_000_000),
    "10g": Disk(size=256 << 20, data=60_000_000),
    "40g": Disk(size=2 << 30, data=40_000_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    name: str
    """Of the cases: ``2g.qcow2c``."""
    path: Path
    format: str
    """QEMU's name of the innermost format."""
    wrapper: str | None
    virtual_size: int
    raw: Path
    """What the result must equal."""


class Images:
    """Cache of images, each built on first use."""

    def __init__(self, cache: Path, *, quick: bool) -> None:
        self.directory = cache / f"images-{VERSION}{'-quick' if quick else ''}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.disks = QUICK_DISKS if quick else DISKS

    def get(self, name: str) -> Image:
        disk, _, kind = name.partition(".")
        raw = {"tiny": self._tiny, "boot": self._boot}.get(disk, lambda: self._raw(disk))()
        inner, _, wrapper = kind.partition(".")
        path = raw if kind == "raw" else self.directory / name
        if not path.exists():
            print(f"== image {name}", flush=True)
            partial = path.with_name(path.name + ".partial")
            if wrapper:
                _compress(wrapper, raw, partial)
            else:
                _convert(inner, raw, partial)
            partial.replace(path)
        image_format = {"qcow2c": "qcow2", "vhd": "vpc", "vmdk-stream": "vmdk"}.get(inner, inner)
        return Image(
            name=name,
            path=path,
            format=image_format,
            wrapper=wrapper or None,
            virtual_size=raw.stat().st_size,
            raw=raw,
        )

    def sha256(self, image: Image) -> str:
        """Kept beside the image."""
        kept = image.path.with_name(image.path.name + ".sha256")
        if not kept.exists():
            with image.path.open("rb") as file:
                kept.write_text(hashlib.file_digest(file, "sha256").hexdigest())
        return kept.read_text().strip()

    def _tiny(self) -> Path:
        path = self.directory / "tiny.raw"
        if not path.exists():
            with open(shutil.which("qemu-img") or "/bin/sh", "rb") as file:
                path.write_bytes(file.read(1 << 20).ljust(1 << 20, b"\0"))
        return path

    def _boot(self) -> Path:
        path = self.directory / "boot.raw"
        if not path.exists():
            partial = path.with_name(path.name + ".partial")
            _convert("raw", self._raw("2g"), partial)
            with partial.open("r+b") as file:
                file.write(_BOOT_SECTOR)
            partial.replace(path)
        return path

    def _raw(self, name: str) -> Path:
        disk = self.disks[name]
        path = self.directory / f"{name}.raw"
        if path.exists():
            return path
        print(
            f"== image {name}.raw: {disk.data / 1e9:.2f} GB of files in a disk of {disk.size / (1 << 30):g} GiB",
            flush=True,
        )
        tree = self.directory / f"{name}.tree"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        partial = path.with_name(path.name + ".partial")
        try:
            _collect(tree, disk.data)
            with partial.open("wb") as file:
                file.truncate(disk.size)
            seed = f"00000000-0000-4000-8000-{int(hashlib.sha256(name.encode()).hexdigest()[:12], 16):012x}"
            options = f"lazy_itable_init=1,lazy_journal_init=1,hash_seed={seed}"
            command = f"mke2fs -q -F -t ext4 -m 0 -U {seed} -E {options} -d".split()
            subprocess.run([*command, str(tree), str(partial)], check=True, stdin=subprocess.DEVNULL)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
        partial.replace(path)
        return path


def _convert(kind: str, raw: Path, out: Path) -> None:
    options = {
        "raw": ["-O", "raw"],
        "qcow2c": ["-c", "-O", "qcow2"],
        "qcow2": ["-O", "qcow2"],
        "vmdk": ["-O", "vmdk"],
        "vmdk-stream": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
        "vhdx": ["-O", "vhdx"],
        "vdi": ["-O", "vdi"],
        "vhd": ["-O", "vpc", "-o", "subformat=dynamic,force_size=on"],
    }[kind]
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, str(raw), str(out)], check=True)


def _compress(wrapper: str, raw: Path, out: Path) -> None:
    command = {
        "gz": ["pigz", "-c", "-6"],
        "zst": ["zstd", "-q", "-c", "-3", "-T0"],
        "xz": ["xz", "-c", "-T0", "-3"],
    }[wrapper]
    with raw.open("rb") as source, out.open("wb") as target:
        subprocess.run(command, check=True, stdin=source, stdout=target)


def _files() -> Iterator[Path]:
    """Yield readable regular files, each content once, in the order of their paths' digests."""
    found: list[tuple[bytes, str]] = []
    for root in _ROOTS:
        for directory, _, names in os.walk(root):
            for name in names:
                path = f"{directory}/{name}"
                found.append((hashlib.sha256(os.fsencode(path)).digest(), path))
    seen: set[tuple[int, int]] = set()
    for _, path in sorted(found):
        try:
            status = os.lstat(path)
        except OSError:
            continue
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= _MAX_FILE or not os.access(path, os.R_OK):
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            yield Path(path)


def _collect(tree: Path, wanted: int) -> None:
    """Fill `tree` with `wanted` bytes of files.

    If the machine has less, the files are repeated with their bytes substituted: equally compressible, but not
    identical.
    """
    total = count = 0
    for turn in range(64):
        table = list(range(256))
        random.Random(turn).shuffle(table)
        before = total
        for source in _files():
            if total >= wanted:
                return
            directory = tree / f"{count // 500:04d}"
            directory.mkdir(exist_ok=True)
            target = directory / f"{count:06d}"
            if turn == 0:
                shutil.copyfile(source, target)
            else:
                target.write_bytes(source.read_bytes().translate(bytes(table)))
            total += target.stat().st_size
            count += 1
        if total == before:
            break
    if total < wanted:
        raise SystemExit(f"bench: this machine has only {total} bytes of files for the images")
