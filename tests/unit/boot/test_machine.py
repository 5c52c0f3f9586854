import random
import struct

import pytest

from cdi.api.errors import BootFailed
from cdi.boot import machine as boot_machine
from cdi.boot.machine import EFI_SYSTEM, Machine, choose_firmware


def disk(code=b"", table=b"", header=b"", entries=b""):
    first = bytearray(512)
    first[: len(code)] = code
    first[446 : 446 + len(table)] = table
    first[510:] = b"\x55\xaa"
    return bytes(first) + header.ljust(512, b"\0") + entries.ljust(32 * 512, b"\0")


def gpt(*types, first=2, count=128, size=128):
    header = b"EFI PART".ljust(72, b"\0") + struct.pack("<QII", first, count, size)
    # An entry's announced size may be gigabytes; the disk has only what its type needs.
    return {"header": header, "entries": b"".join(kind.ljust(min(size, 128), b"\0") for kind in types)}


def choose(content, arch="x86_64"):
    return choose_firmware(lambda offset, length: content[offset : offset + length], arch)


PROTECTIVE = bytes([0, 0, 0, 0, 0xEE])
LINUX = bytes.fromhex("af3dc60f838472478e793d69d8477de4")


@pytest.mark.parametrize(
    ("content", "firmware"),
    [
        (b"", "bios"),
        (bytes(4096), "bios"),
        (disk(code=b"\xeb\x63"), "bios"),
        (disk(code=b"\xeb\x63", table=PROTECTIVE, **gpt(LINUX, EFI_SYSTEM)), "bios"),
        (disk(table=PROTECTIVE, **gpt(LINUX, EFI_SYSTEM)), "uefi"),
        (disk(table=PROTECTIVE, **gpt(LINUX)), "bios"),
        (disk(table=bytes([0, 0, 0, 0, 0xEF])), "uefi"),
        (disk(table=PROTECTIVE, **gpt(EFI_SYSTEM, first=1 << 60)), "bios"),
        (disk(table=PROTECTIVE, **gpt(EFI_SYSTEM, count=2**32 - 1, size=2**31)), "bios"),
    ],
)
def test_the_firmware_is_what_the_disk_is_made_for(content, firmware):
    assert choose(content) == firmware


def test_other_architectures_have_no_bios():
    assert choose(b"", "aarch64") == "uefi"


def test_no_bytes_break_the_choice():
    dice = random.Random(2)
    for _ in range(200):
        content = disk(table=PROTECTIVE, header=b"EFI PART" + dice.randbytes(100), entries=dice.randbytes(2000))
        assert choose(content) in ("bios", "uefi")


def machine(**more):
    defaults = {
        "arch": "x86_64",
        "firmware": "bios",
        "code": None,
        "variables": None,
        "accelerator": "kvm",
        "memory": 512 << 20,
        "disk": "/volumes/a,b/disk.img",
        "disk_is_block": False,
        "overlay": "/x/overlay",
        "seed": "/x/seed",
    }
    return Machine(**(defaults | more)).arguments(monitor=5, console=6)


def test_the_disk_is_read_only_and_the_network_leads_nowhere():
    arguments = " ".join(machine())
    assert '"filename": "/volumes/a,b/disk.img", "read-only": true' in arguments
    assert "restrict=on" in arguments
    assert "-sandbox on" in arguments


def test_a_comma_in_the_name_of_the_variables_stays_in_the_name():
    arguments = machine(firmware="uefi", code="/f/code.fd", variables="/tmp/a,b/variables.fd")
    assert any(argument.endswith("file=/tmp/a,,b/variables.fd") for argument in arguments)


def test_without_kvm_and_emulation_nothing_may_run_it(monkeypatch):
    monkeypatch.setattr(boot_machine.os, "access", lambda path, mode: False)
    assert boot_machine.accelerators(tcg=True) == ("tcg",)
    with pytest.raises(BootFailed, match="/dev/kvm"):
        boot_machine.accelerators(tcg=False)
