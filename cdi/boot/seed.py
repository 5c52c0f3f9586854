"""NoCloud seed: a small ISO 9660 volume labelled ``cidata``, from which cloud-init reads a VM's first settings.

The volume follows ECMA-119. The Joliet tree has the file names that cloud-init expects; the primary tree, for readers
without Joliet, has the closest names that Linux presents the same way. Every file starts at its own sector. The root
directory holds a few small files and nothing else, so each directory fits into one sector.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

SECTOR = 2048
SYSTEM_AREA = 16
PRIMARY, JOLIET, TERMINATOR = 16, 17, 18
PRIMARY_PATHS_L, PRIMARY_PATHS_M, JOLIET_PATHS_L, JOLIET_PATHS_M = 19, 20, 21, 22
PRIMARY_ROOT, JOLIET_ROOT = 23, 24
FIRST_FILE = 25

MAX_FILE = 1 << 20
MAX_FILES = 16

# Fixed at 1 January 2000, so that the same files give the same image.
WHEN_SHORT = bytes((100, 1, 1, 0, 0, 0, 0))
WHEN_LONG = b"2000010100000000\0"
WHEN_NEVER = b"0" * 16 + b"\0"


def nocloud(files: Mapping[str, str], *, marker: str) -> bytes:
    """Return the seed's image, with a script that prints `marker` on the serial console at the end of the boot.

    `files` are those of cloud-init's NoCloud data source (``meta-data``, ``user-data``, ``vendor-data``,
    ``network-config``) and override the built-in ones. The script is the user-data, or the vendor-data if a user-data
    is given. Raises `ValueError` for other names.
    """
    known = ("meta-data", "user-data", "vendor-data", "network-config")
    if unknown := sorted(set(files) - set(known)):
        raise ValueError(f"a seed has no file named {', '.join(unknown)}")
    contents = {"meta-data": f"instance-id: {marker}\nlocal-hostname: boot-check\n"}
    contents["vendor-data" if "user-data" in files else "user-data"] = script(marker)
    contents.setdefault("user-data", "#cloud-config\n{}\n")
    contents |= files
    return iso9660({name: text.encode() for name, text in contents.items()}, label="cidata")


def script(marker: str) -> str:
    """Return a script for cloud-init's last stage that prints the marker.

    The marker is assembled when the script runs, so that printing the script itself does not print the marker.
    """
    head, tail = marker[: len(marker) // 2], marker[len(marker) // 2 :]
    return (
        "#!/bin/sh\n"
        f"head={head} tail={tail}\n"
        "for console in /dev/ttyS0 /dev/ttyAMA0 /dev/hvc0; do\n"
        '    [ -c "$console" ] && printf "\\n%s%s\\n" "$head" "$tail" > "$console" 2>/dev/null\n'
        "done\n"
        "exit 0\n"
    )


def iso9660(files: Mapping[str, bytes], *, label: str) -> bytes:
    """Return an image with `files` in its root; raise `ValueError` if they are too many or too large."""
    if len(files) > MAX_FILES or any(len(content) > MAX_FILE for content in files.values()):
        raise ValueError("a seed may contain only a few small files")
    places: dict[str, int] = {}
    place = FIRST_FILE
    for name, content in files.items():
        places[name] = place
        place += max(1, -(-len(content) // SECTOR))
    sectors = place

    image = bytearray(sectors * SECTOR)

    def put(sector: int, data: bytes) -> None:
        image[sector * SECTOR : sector * SECTOR + len(data)] = data

    put(PRIMARY, descriptor(1, label.encode(), PRIMARY_ROOT, PRIMARY_PATHS_L, PRIMARY_PATHS_M, sectors))
    put(JOLIET, descriptor(2, label.encode("utf-16-be"), JOLIET_ROOT, JOLIET_PATHS_L, JOLIET_PATHS_M, sectors))
    put(TERMINATOR, b"\xffCD001\x01")
    for root, little, big in (
        (PRIMARY_ROOT, PRIMARY_PATHS_L, PRIMARY_PATHS_M),
        (JOLIET_ROOT, JOLIET_PATHS_L, JOLIET_PATHS_M),
    ):
        put(little, struct.pack("<BBIHBB", 1, 0, root, 1, 0, 0))
        put(big, struct.pack(">BBIHBB", 1, 0, root, 1, 0, 0))
    names = sorted(files)
    put(
        PRIMARY_ROOT,
        directory(PRIMARY_ROOT, [((name.upper() + ".;1").encode(), places[name], len(files[name])) for name in names]),
    )
    put(
        JOLIET_ROOT,
        directory(JOLIET_ROOT, [((name + ";1").encode("utf-16-be"), places[name], len(files[name])) for name in names]),
    )
    for name, content in files.items():
        put(places[name], content)
    return bytes(image)


def both(number: int) -> bytes:
    """Return 32 bits in both byte orders (ECMA-119 7.3.3)."""
    return struct.pack("<I", number) + struct.pack(">I", number)


def both_short(number: int) -> bytes:
    """Return 16 bits in both byte orders (ECMA-119 7.2.3)."""
    return struct.pack("<H", number) + struct.pack(">H", number)


def record(name: bytes, sector: int, length: int, *, is_directory: bool) -> bytes:
    """Return a directory record (ECMA-119 9.1)."""
    body = both(sector) + both(length) + WHEN_SHORT + bytes((2 if is_directory else 0, 0, 0)) + both_short(1)
    body += bytes((len(name),)) + name
    if len(name) % 2 == 0:
        body += b"\0"
    return bytes((len(body) + 2, 0)) + body


def directory(sector: int, entries: list[tuple[bytes, int, int]]) -> bytes:
    """Return the root directory: itself, its parent (again itself) and its files in order."""
    records = [record(b"\0", sector, SECTOR, is_directory=True), record(b"\1", sector, SECTOR, is_directory=True)]
    records += [record(name, place, length, is_directory=False) for name, place, length in sorted(entries)]
    return b"".join(records)


def descriptor(kind: int, label: bytes, root: int, paths_l: int, paths_m: int, sectors: int) -> bytes:
    """Return a primary (1) or supplementary (2, Joliet) volume descriptor (ECMA-119 8.4, 8.5)."""
    blank = b" " if kind == 1 else b"\0 "

    def text(value: bytes, length: int) -> bytes:
        return (value + blank * length)[:length]

    escape = bytes(32) if kind == 1 else b"%/E".ljust(32, b"\0")  # UCS-2 level 3
    return b"".join(
        (
            bytes((kind,)) + b"CD001\x01\0",
            text(b"", 32),
            text(label, 32),
            bytes(8),
            both(sectors),
            escape,
            both_short(1) + both_short(1) + both_short(SECTOR),
            both(10),
            struct.pack("<II", paths_l, 0),
            struct.pack(">II", paths_m, 0),
            record(b"\0", root, SECTOR, is_directory=True),
            text(b"", 128) * 4,
            text(b"", 37) * 3,
            WHEN_LONG * 2 + WHEN_NEVER * 2,
            b"\x01",
        )
    )
