import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.boot.console import TAIL, Console, Kind

DEBIAN = (
    b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2)\r\nBooting from Hard Disk...\r\nGRUB loading.\r\n"
    b"[    0.000000] Linux version 6.1.0 (root@example) #1 SMP\r\n"
    b"Begin: Loading essential drivers ... done.\r\n"
    b"\r\nWelcome to \x1b[1mDebian GNU/Linux 12 (bookworm)\x1b[0m!\r\n\r\n"
    b"[\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mBasic System\x1b[0m.\r\n"
)
LOGIN = b"\r\nDebian GNU/Linux 12 boot-check ttyS0\r\n\r\nboot-check login: "


def verdict(*pieces, **more):
    console = Console(**more)
    decided = [sighting for piece in pieces if (sighting := console.feed(piece)) is not None]
    assert len(decided) <= 1
    return console


@pytest.mark.parametrize(
    "text",
    [
        LOGIN,
        b"localhost login: ",
        b"login: ",
        b"\x1b[H\x1b[Jvm-1.example.org login:",
        b"[  \x1b[32mOK\x1b[0m  ] Reached target \x1b[1mMulti-User System\x1b[0m.\r\n",
        b"[  OK  ] Reached target multi-user.target - Multi-User System.\r\n",
        b"[  OK  ] Started serial-getty@ttyS0.service - Serial Getty on ttyS0.\r\n",
        b"Cloud-init v. 23.3.1 finished at Mon, 01 Jan 2024 00:00:00 +0000. Datasource DataSourceNoCloud\r\n",
    ],
)
def test_a_running_system_is_recognised(text):
    assert verdict(DEBIAN, text).decided.kind is Kind.BOOTED


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"Boot failed: not a bootable disk\r\n\r\nNo bootable device.", "firmware found nothing"),
        (b"BdsDxe: No bootable option or device was found.\r\n", "firmware found nothing"),
        (b"UEFI Interactive Shell v2.2\r\n", "shell"),
        (b"Missing operating system", "boot sector"),
        (b"error: no such device: 1234.\r\nEntering rescue mode...\r\ngrub rescue> ", "boot loader"),
        (b"\r   Minimal BASH-like line editing is supported.", "boot loader"),
        (b"[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n", "panicked"),
        (b"ALERT!  UUID=123 does not exist.  Dropping to a shell!\r\n\r\n(initramfs) ", "root filesystem"),
        (b"\r\n(initramfs) ", "initramfs"),
        (b"dracut:/# ", "initramfs"),
        (b'You are in emergency mode. After logging in, type "journalctl -xb"', "emergency"),
        (b"Give root password for maintenance\r\n(or press Control-D to continue): ", "emergency"),
    ],
)
def test_a_failure_is_recognised_and_named(text, what):
    decided = verdict(text).decided
    assert decided.kind is Kind.FAILED
    assert what in decided.what


@pytest.mark.parametrize(
    "text",
    [
        b"Last login: Mon Jan  1 00:00:00 on ttyS0\r\n",
        b"[    1.0] systemd-logind[1]: New seat seat0.\r\n",
        b"[    1.0] audit: user login: none\r\n",
        b"Booting from Hard Disk...\r\nGRUB loading.\r\n",
        b"[  OK  ] Reached target Local File Systems.\r\n",
        b'BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x1,0x0): Not Found\r\n',
        b"kernel: panic=30\r\n",
    ],
)
def test_other_lines_decide_nothing(text):
    assert verdict(text).decided is None


def test_a_greeting_is_a_hint_but_not_that_of_an_initramfs():
    assert verdict(DEBIAN).decided is None
    assert "userspace" in verdict(DEBIAN).hint.what
    assert verdict(b"Welcome to Fedora Linux 38 dracut-059 (Initramfs)!\r\n").hint is None
    assert verdict(b"GRUB loading...\r\nWelcome to GRUB!\r\n").hint is None


def test_a_kernel_that_speaks_is_noticed():
    assert verdict(DEBIAN).kernel
    assert not verdict(DEBIAN.partition(b"Linux")[0]).kernel


def test_the_first_that_decides_stays():
    console = verdict(b"Kernel panic - not syncing: Attempted to kill init\r\n", LOGIN)
    assert console.decided.kind is Kind.FAILED


def test_the_line_that_decides_is_quoted_to_its_end():
    console = verdict(b"[ 1.0] Kernel panic - not sync", b"ing: VFS: Unable", b" to mount\r\nnext line")
    assert console.decided.line == "[ 1.0] Kernel panic - not syncing: VFS: Unable to mount"


def test_the_seeds_marker_proves_a_boot():
    assert verdict(b"cdi-boot-12", b"34\r\n", marker="cdi-boot-1234").decided.kind is Kind.BOOTED


def test_with_an_expected_text_nothing_else_proves_a_boot_and_failures_still_count():
    expect = re.compile(r"service (\d+) ready")
    assert verdict(DEBIAN, LOGIN, expect=expect).decided is None
    assert verdict(DEBIAN, LOGIN, b"\r\nservice 17 ready\r\n", expect=expect).decided.kind is Kind.BOOTED
    assert verdict(b"Kernel panic - not syncing: x\r\n", expect=expect).decided.kind is Kind.FAILED


def test_what_is_kept_is_bounded():
    console = Console()
    for _ in range(20):
        console.feed(b"x" * 100_000)
    console.feed(b"\nthe end")
    assert len(console.tail) <= TAIL
    assert console.tail.endswith("the end")
    assert console.received == 20 * 100_000 + 8


PARTS = [
    DEBIAN,
    LOGIN,
    b"Last login: x\r\n",
    b"\r\n",
    b"\r",
    b"\x1b[1;31m",
    b"\x1b]0;title\x07",
    b"\x1b",
    b"\x1b[",
    b"\xc3\xa9\xff",
    b"Welcome to Fedora! dracut\n",
    b"Welcome to Fedora dracut!\n",
    b"ALERT! a does not exist. b does not exist. Dropping to a shell!",
    b"Kernel panic - not syncing: a\n",
    b"grub> ",
    b"Reached target Multi-User System",
    b"No bootable device",
    b"y" * 300,
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=8), st.lists(st.integers(0, 3000), max_size=12))
def test_any_pieces_of_the_same_console_give_the_same_verdict(parts, cuts):
    data = b"".join(parts)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    whole = verdict(data)
    pieces = verdict(*(data[start:end] for start, end in zip(edges, edges[1:], strict=False)))
    assert pieces.decided == whole.decided
    assert pieces.hint == whole.hint
    assert pieces.tail == whole.tail


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_no_bytes_break_it(data):
    verdict(data)


def test_the_last_line_is_the_last_one_that_is_not_blank():
    console = Console()
    assert console.last_line == ""
    console.feed(b"one\r\ntwo \x1b[0m\r\n \r\n\r\n")
    assert console.last_line == "two"
    console.feed(b"thr")
    assert console.last_line == "thr"
