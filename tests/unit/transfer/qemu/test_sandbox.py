import os
import signal

import pytest

from cdi.api.errors import QemuFailed, QemuMissing, ResourceLimit
from cdi.transfer.qemu import sandbox


@pytest.mark.parametrize(
    ("status", "stderr", "error"),
    [
        (1, "qemu-img: Could not open 'x': invalid VMDK image descriptor\n", QemuFailed),
        (1, "", QemuFailed),
        (-signal.SIGSEGV, "", QemuFailed),
        (-signal.SIGKILL, "", ResourceLimit),
        (-signal.SIGXCPU, "", ResourceLimit),
        (-signal.SIGABRT, "qemu: qemu_thread_create: Resource temporarily unavailable\n", ResourceLimit),
        (-signal.SIGTRAP, "(process:1): GLib-ERROR: failed to allocate 123 bytes\n", ResourceLimit),
        (1, "qemu-img: Could not read L1 table: Cannot allocate memory\n", ResourceLimit),
        (127, "launcher: /usr/bin/qemu-img does not exist\n", QemuMissing),
        (-123, "", QemuFailed),
    ],
)
def test_an_exit_status_and_last_words_become_an_error(status, stderr, error):
    assert type(sandbox.error_from_exit("qemu-img", status, stderr, where="here")) is error


def test_the_message_is_qemus_last_line_made_harmless():
    failure = sandbox.error_from_exit(
        "qemu-img", 1, "first\nqemu-img: bad \x1b[31mname" + "x" * 1000 + "\n\n", where="disk.vmdk"
    )
    assert failure.what.startswith("qemu-img: bad ?[31mname")
    assert len(failure.what) < 400
    assert failure.where == "disk.vmdk"


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(QemuMissing, match="qemu-no-such-program"):
        sandbox.find("qemu-no-such-program")


@pytest.mark.parametrize(("newest", "kept"), [(True, b"z" * 10), (False, b"a" * 10)])
def test_a_drain_keeps_a_bounded_part(newest, kept):
    read, write = os.pipe()
    drain = sandbox.PipeReader(os.fdopen(read, "rb"), keep=10, newest=newest)
    with os.fdopen(write, "wb") as file:
        file.write(b"a" * 100_000 + b"z" * 100_000)
    drain.wait()
    assert drain.bytes() == kept
    assert drain.overflowed
