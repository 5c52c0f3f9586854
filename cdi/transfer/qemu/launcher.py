"""Launcher that confines itself and then executes the given program.

Run as ``python3 -I -S launcher.py OPTION… -- PROGRAM ARGUMENT…`` by `cdi.transfer.qemu.sandbox`, which has threads and
so cannot run Python between fork and exec. It imports nothing of the project and as little else as possible: it starts
for every conversion and pays for every import each time.

Options, each ``name=value`` and in any order::

    parent=PID        exit if this is no longer the parent, and die with it from now on
    limit=NAME:N      resource limit, both soft and hard (AS, CPU, FSIZE, NOFILE, CORE)
    read=PATH         may be read, with everything below it
    write=PATH        may be read and written
    run=PATH          may be read and executed, with everything below it
    report=FD         write the names of the active protections, one per line, and close it

Protections that the kernel or the container does not permit are skipped: the layers are independent. Exit status 126,
with a line on standard error: the program could not be started; 127: it does not exist.

The Landlock rules follow the kernel's Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import sys

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000

CAP_DAC_OVERRIDE = 1
"""The only capability that root keeps: the volume may belong to another user."""
CAPABILITY_VERSION = 0x20080522

# The system call numbers are the same on every architecture.
LANDLOCK_CREATE_RULESET = 444
LANDLOCK_ADD_RULE = 445
LANDLOCK_RESTRICT_SELF = 446
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1

FS_EXECUTE = 1 << 0
FS_WRITE_FILE = 1 << 1
FS_READ_FILE = 1 << 2
FS_READ_DIR = 1 << 3
FS_V1 = (1 << 13) - 1
FS_REFER = 1 << 13
FS_TRUNCATE = 1 << 14
FS_IOCTL_DEV = 1 << 15
NET_TCP = 0b11
SCOPE_ABSTRACT_SOCKETS = 1 << 0
SCOPE_SIGNALS = 1 << 1

READ = FS_READ_FILE | FS_READ_DIR
RUN = READ | FS_EXECUTE
FILE_ONLY = FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | FS_TRUNCATE | FS_IOCTL_DEV
"""Rights that apply to non-directories; the kernel rejects a rule with others."""

libc = ctypes.CDLL(None, use_errno=True)


class RulesetAttr(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_version() -> int:
    """Return the kernel's Landlock ABI version; 0 if it has none or a filter forbids it."""
    version: int = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    return max(0, version)


def allow(ruleset: int, path: str, rights: int) -> bool:
    """Add a path to a ruleset; return False if the kernel rejects it."""
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True  # a missing path needs no permission
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= FILE_ONLY
        rule = PathBeneathAttr(rights, handle)
        return bool(libc.syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), 0) == 0)
    finally:
        os.close(handle)


def landlock(rules: list[tuple[str, int]]) -> bool:
    """Restrict this process permanently to the paths in `rules`; return whether that succeeded."""
    version = landlock_version()
    if version == 0:
        return False
    handled = FS_V1
    if version >= 2:
        handled |= FS_REFER
    if version >= 3:
        handled |= FS_TRUNCATE
    if version >= 5:
        handled |= FS_IOCTL_DEV
    attr = RulesetAttr(handled, 0, 0)
    size = 8
    if version >= 4:
        size = 16
        attr.net = NET_TCP
    if version >= 6:
        size = 24
        attr.scoped = SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(attr), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        if not all(allow(ruleset, path, rights & handled) for path, rights in rules):
            return False
        return bool(libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def leave_network() -> bool:
    """Enter an empty network namespace, without even an active loopback; return whether that succeeded."""
    if libc.unshare(CLONE_NEWNET) == 0:
        return True
    # Without privileges, a new user namespace permits it; files keep their owners, so nothing else changes.
    # A privileged process must not use one: it would lose the right to open volumes of other users.
    return os.geteuid() != 0 and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0


def drop_capabilities() -> bool:
    """Drop all capabilities except `CAP_DAC_OVERRIDE`, across exec too; return whether that succeeded."""
    keep = 1 << CAP_DAC_OVERRIDE
    number = 0
    dropped = True
    while libc.prctl(23, number, 0, 0, 0) >= 0:  # PR_CAPBSET_READ, an error past the last capability
        if not keep & (1 << number):
            dropped = libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0 and dropped
        number += 1
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) == 0:
        now = (ctypes.c_uint32 * 6)(data[0] & keep, data[1] & keep, 0, 0, 0, 0)
        dropped = libc.capset(header, now) == 0 and (dropped or os.geteuid() != 0)
    return dropped


def limit(setting: str) -> None:
    """Set a resource limit, at most the current hard limit."""
    name, _, number = setting.partition(":")
    which = getattr(resource, f"RLIMIT_{name}")
    wanted = int(number)
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    # RLIMIT_CPU's soft limit sends SIGXCPU, which names the cause; the hard one a second later is a plain SIGKILL.
    top = wanted + 1 if name == "CPU" and (hard == resource.RLIM_INFINITY or wanted < hard) else wanted
    resource.setrlimit(which, (wanted, top))


def main(arguments: list[str]) -> int:
    split = arguments.index("--")
    program = arguments[split + 1 :]
    rules: list[tuple[str, int]] = []
    limits: list[str] = []
    report = -1
    for argument in arguments[:split]:
        name, _, value = argument.partition("=")
        if name == "parent":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != int(value):
                return 126
        elif name == "limit":
            limits.append(value)
        elif name == "read":
            rules.append((value, READ))
        elif name == "write":
            rules.append((value, READ | FS_WRITE_FILE | FS_TRUNCATE | FS_IOCTL_DEV))
        elif name == "run":
            rules.append((value, RUN))
        elif name == "report":
            report = int(value)
        else:
            os.write(2, f"launcher: unknown option {name}\n".encode())
            return 126
    active: list[str] = []
    if leave_network():
        active.append("network namespace")
    if drop_capabilities():
        active.append("capabilities")
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        active.append("no new privileges")
    if rules and landlock(rules):
        active.append("landlock")
    if report >= 0:
        os.write(report, "\n".join(active).encode())
        os.close(report)
    # Python ignores SIGPIPE and SIGXFSZ, and ignored signals stay ignored across exec. For SIGXFSZ that is intended:
    # a write past the limit fails with EFBIG, which becomes the job's error, instead of killing the process.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # Last: the limits apply to this interpreter too, which needs more address space than some programs.
    for setting in limits:
        limit(setting)
    try:
        os.execv(program[0], program)  # noqa: S606 — this is the launcher's purpose
    except FileNotFoundError:
        os.write(2, f"launcher: {program[0]} does not exist\n".encode())
        return 127
    except OSError as error:
        os.write(2, f"launcher: {program[0]}: {error.strerror}\n".encode())
        return 126


if __name__ == "__main__":
    # Not sys.exit: there is nothing to clean up, and finalization costs as much as startup.
    os._exit(main(sys.argv[1:]))
