"""Tests of the boot check, with boot sectors that write a text to the serial port."""

import hashlib
import os
import re
import threading
from pathlib import Path

import pytest

from cdi.api.errors import BootFailed, Interrupted, QemuFailed, TargetIo
from cdi.boot import check as boot
from cdi.boot import watcher
from cdi.boot.check import boot_check
from cdi.boot.machine import Machine

HALT = bytes.fromhex("f4ebfd")  # hlt; jmp $-1
RESET = bytes.fromhex("b0fee664f4ebfd")  # mov al,0xfe; out 0x64,al; hlt; jmp $-1


def boot_sector(text, then):
    """Return a boot sector that prints a text on a new line of the serial port, and then runs the code `then`.

    Interrupts are off: SeaBIOS prints the last characters of its screen from the timer interrupt, in the middle of the
    text if the machine is busy.
    """
    code = bytearray.fromhex(
        "fa 31c0 8ed8 fc"  # cli; xor ax,ax; mov ds,ax; cld
        "ba f803 be 0000"  # mov dx,0x3f8; mov si,text
        "ac 84c0 7412"  # next: lodsb; test al,al; jz done
        "88c3"  # mov bl,al
        "83c205 ec 83ea05"  # wait: add dx,5; in al,dx; sub dx,5
        "a820 74f5"  # test al,0x20; jz wait
        "88d8 ee ebe9"  # mov al,bl; out dx,al; jmp next
    )
    code += then  # done:
    code[10:12] = (0x7C00 + len(code)).to_bytes(2, "little")
    return (bytes(code) + b"\r\n" + text + b"\0").ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def disk(tmp_path):
    def make(first=b"", size=1 << 20):
        path = tmp_path / "disk.img"
        path.write_bytes(first.ljust(size, b"\0"))
        return str(path)

    return make


def check(path, tmp_path, **more):
    return boot_check(path, workdir=str(tmp_path), **({"timeout": 90, "memory": 64 << 20} | more))


def test_a_login_prompt_is_a_boot_and_the_disk_is_not_written(disk, tmp_path):
    path = disk(boot_sector(b"\r\ngolden login: ", HALT))
    before = hashlib.sha256(Path(path).read_bytes()).digest()
    report = check(path, tmp_path)
    assert report.booted, report
    assert report.evidence == "a login prompt: golden login:"
    assert report.why_not is None
    assert "golden login:" in report.serial_tail
    assert report.disk_read >= 512
    assert hashlib.sha256(Path(path).read_bytes()).digest() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk.img"]
    report.require()


def test_a_blank_disk_has_nothing_to_boot(disk, tmp_path):
    report = check(disk(), tmp_path)
    assert not report.booted
    assert "No bootable device" in report.why_not
    with pytest.raises(BootFailed, match="No bootable device"):
        report.require(where="volume")


def test_a_panic_is_quoted(disk, tmp_path):
    report = check(disk(boot_sector(b"[ 1.0] Kernel panic - not syncing: VFS: no root\r\n", HALT)), tmp_path)
    assert report.why_not == "the kernel panicked: [ 1.0] Kernel panic - not syncing: VFS: no root"


def test_a_boot_loop_is_recognised(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(watcher, "RESETS", 2)
    report = check(disk(boot_sector(b"once more\r\n", RESET)), tmp_path)
    assert not report.booted
    assert "boot loop" in report.why_not
    assert report.resets >= 2  # it may reset once more before it is stopped


def test_silence_ends_with_the_time_and_says_how_much_was_read(disk, tmp_path):
    report = check(disk(boot_sector(b"", HALT)), tmp_path, timeout=2)
    assert not report.booted
    assert "of its disk" in report.why_not


def test_only_what_is_expected_counts(disk, tmp_path):
    report = check(
        disk(boot_sector(b"\r\nx login: \r\nall 7 services up\r\n", HALT)), tmp_path, expect=r"all \d services"
    )
    assert report.evidence == "the expected text: all 7 services up"


def test_emulation_where_kvm_cannot(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(boot, "accelerators", lambda tcg: ("tcg",))
    report = check(disk(boot_sector(b"\r\nx login: ", HALT)), tmp_path)
    assert report.booted
    assert report.accelerator == "tcg"


def test_an_accelerator_that_fails_at_once_is_followed_by_the_next(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(boot, "accelerators", lambda tcg: ("none-such", "tcg"))
    assert check(disk(boot_sector(b"\r\nx login: ", HALT)), tmp_path).accelerator == "tcg"


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="there is no KVM")
@pytest.mark.parametrize(("seconds", "processor_seconds"), [(0.5, 1000.0), (1000.0, 0.0)])
def test_nested_kvm_that_does_not_get_to_a_kernel_is_followed_by_emulation(
    disk, tmp_path, monkeypatch, seconds, processor_seconds
):
    monkeypatch.setattr(boot, "is_nested", lambda: True)
    monkeypatch.setattr(boot, "NESTED_PATIENCE", watcher.Patience(seconds=seconds, processor_seconds=processor_seconds))
    report = check(disk(boot_sector(b"", HALT)), tmp_path, timeout=3)
    assert report.accelerator == "tcg"
    assert not report.booted


def test_without_a_timeout_emulation_gets_its_own(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(boot, "accelerators", lambda tcg: ("tcg",))
    monkeypatch.setattr(boot, "DEFAULT_TIMEOUTS", {"kvm": 0.0, "tcg": 2.0})
    report = check(disk(boot_sector(b"", HALT)), tmp_path, timeout=None)
    assert not report.booted
    seconds = re.search(r"within (\d+) seconds", report.why_not)
    assert seconds is not None
    assert int(seconds[1]) >= 2  # measured, and so more on a busy machine


def test_the_consoles_last_line_is_reported_while_the_guest_runs(disk, tmp_path):
    lines = []
    check(disk(boot_sector(b"first\r\n\r\n\x1b[1mgolden login: ", HALT)), tmp_path, on_line=lines.append)
    assert lines[-1] == "golden login:"


def test_uefi_finds_nothing_on_a_blank_disk(disk, tmp_path):
    report = check(disk(), tmp_path, firmware="uefi", memory=256 << 20)
    assert not report.booted
    assert report.firmware == "uefi"
    assert "the firmware" in report.why_not  # it found nothing, or started its shell if it has one


class Silent(Machine):
    """A machine whose emulator runs and never answers."""

    program = "sleep"

    def arguments(self, **_descriptors):
        return ["600"]


def test_an_emulator_that_does_not_answer_is_given_up(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(boot, "Machine", Silent)
    monkeypatch.setattr(watcher, "START_TIMEOUT", 0.5)
    with pytest.raises(QemuFailed, match="did not answer"):
        check(disk(), tmp_path)


def test_it_can_be_stopped_while_the_emulator_does_not_answer(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(boot, "Machine", Silent)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Interrupted):
        check(disk(), tmp_path, cancelled=cancelled)


def test_it_can_be_stopped(disk, tmp_path):
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Interrupted):
        check(disk(boot_sector(b"", HALT)), tmp_path, cancelled=cancelled)


def test_a_disk_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TargetIo, match="No such file"):
        check(str(tmp_path / "none"), tmp_path)
