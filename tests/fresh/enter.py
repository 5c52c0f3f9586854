"""Run a command in another root:  enter.py [--tmpfs] [--offline] ROOT USER DIRECTORY COMMAND [ARGUMENT ...]

It must run in its own mount and process namespaces, as `unshare` creates them, and changes their root.  A chroot is not
enough: the kernel refuses user namespaces in it, and users need them to build the guest image.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
from pathlib import Path

DETACH = 2  # linux/fs.h: MNT_DETACH

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tmpfs", action="store_true", help="/tmp is a tmpfs")
    parser.add_argument("--offline", action="store_true", help="enable the loopback interface")
    for name in ("root", "user", "directory", "command"):
        parser.add_argument(name)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.offline:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    furnish(Path(arguments.root), tmpfs=arguments.tmpfs)
    os.chdir(arguments.root)
    os.makedirs("outside", exist_ok=True)
    subprocess.run(["/usr/sbin/pivot_root", ".", "outside"], check=True)
    os.chdir("/")
    if _libc.umount2(b"/outside", DETACH):
        raise OSError(ctypes.get_errno(), "umount")
    os.rmdir("/outside")
    child = os.fork()
    if child == 0:
        become(arguments.user)
        os.chdir(arguments.directory)
        os.execvp(arguments.command, [arguments.command, *arguments.arguments])
    # This is the first process here, to which orphans fall.
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.waitstatus_to_exitcode(status) & 0xFF


def furnish(root: Path, *, tmpfs: bool) -> None:
    """Mount the file systems of a running system in this namespace."""
    mount("--bind", root, root)
    for name in ("proc", "sys", "dev", "run", "tmp"):
        (root / name).mkdir(exist_ok=True)
    mount("--types=proc", "proc", root / "proc")
    mount("--rbind", "/sys", root / "sys")
    mount("--rbind", "/dev", root / "dev")
    mount("--types=devpts", "--options=newinstance,ptmxmode=0666,mode=620,gid=5", "devpts", root / "dev/pts")
    mount("--types=tmpfs", "--options=mode=1777", "shm", root / "dev/shm")
    mount("--types=tmpfs", "--options=mode=755", "run", root / "run")
    if tmpfs:
        mount("--types=tmpfs", "--options=mode=1777", "tmp", root / "tmp")


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def become(user: str) -> None:
    """Take the ids of a user of the new root, whose database this process's C library may not read."""
    if user == "root":
        return
    for line in Path("/etc/passwd").read_text().splitlines():
        name, _, uid, gid, *_ = line.split(":")
        if name == user:
            os.setgroups([])
            os.setgid(int(gid))
            os.setuid(int(uid))
            return
    raise SystemExit(f"enter: user {user} does not exist")


if __name__ == "__main__":
    sys.exit(main())
