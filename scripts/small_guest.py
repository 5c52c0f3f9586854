"""A guest of a Linux kernel and BusyBox, which is at its login in seconds even where the processor is emulated.

`scripts/guest-image --small` builds it. The disk has one ext4 file system with the kernel, an initial RAM disk with the
modules that virtual machines need, and BusyBox. The guest asks for an address by DHCP on each network interface, shows
a login on the first serial port and on the screen (user root, no password), and powers off at the power button. It does
not read the settings of cloud-init, which the full guest has.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import debian

__all__ = ["DISK_SIZE", "PACKAGES", "assemble"]

DISK_SIZE = 96 << 20

PACKAGES = (
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "zstd",
    "busybox-static",
    "kmod",
    "grub-common",
    "grub-pc-bin",
)

MODULES = "virtio_pci virtio_blk virtio_scsi virtio_net virtio_balloon sd_mod sr_mod isofs nls_utf8 evdev button"
"""Modules loaded at the boot, besides those that they depend on; this kernel has ext4 built in, and no SATA driver."""

_DIRECTORIES = (
    *("bin", "boot/grub", "dev", "etc", "mnt", "proc", "root", "run", "sbin", "sys", "tmp"),
    *("usr/bin", "usr/sbin", "var/log", "var/run"),
)

_FILES = {
    "etc/hostname": "golden\n",
    "etc/passwd": "root::0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/inittab": (
        "::sysinit:/etc/rc\n"
        "ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100\n"
        "tty1::respawn:/sbin/getty 38400 tty1 linux\n"
        "::respawn:/sbin/acpid -f\n"
        "::ctrlaltdel:/sbin/reboot\n"
        "::shutdown:/bin/umount -a -r\n"
    ),
    "etc/rc": """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
[ -c /dev/null ] || mount -t devtmpfs dev /dev
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -o remount,rw /
hostname -F /etc/hostname
ip link set lo up
for path in /sys/class/net/e*; do
    [ -e "$path" ] || continue
    name=${path##*/}
    ip link set "$name" up
    # The boot does not wait for an answer.
    udhcpc -i "$name" -b -q -t 5 -T 2 -s /etc/dhcp >/dev/null 2>&1 &
done
""",
    "etc/dhcp": """\
#!/bin/sh
# Called by udhcpc with the lease in its environment.
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/${mask:-24}" dev "$interface"
for each in $router; do ip route add default via "$each" dev "$interface"; done
for each in $dns; do echo "nameserver $each"; done >/etc/resolv.conf
""",
    "etc/acpi/PWRF/00000080": "#!/bin/sh\nexec /sbin/poweroff\n",
}
_PROGRAMS = ("etc/rc", "etc/dhcp", "etc/acpi/PWRF/00000080")

_RAM_DISK_INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in {modules}; do modprobe "$module" 2>/dev/null; done
# Disks appear some time after their drivers. Others can be copies of the one that was booted, which is the first.
find_root() {{
    for each in /dev/vd?1 /dev/sd?1; do
        # The UUID of an ext4 file system is at this offset.
        [ "$(xxd -p -s 1128 -l 16 "$each" 2>/dev/null)" = {root_uuid.hex} ] && echo "$each" && return
    done
    return 1
}}
until root=$(find_root); do sleep 0.2; done
mount -t ext4 -o ro "$root" /mnt
umount /sys /proc
mount --move /dev /mnt/dev
exec switch_root /mnt /sbin/init
"""

_GRUB = """\
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=0
menuentry 'Linux' {{
  search --no-floppy --fs-uuid --set=root {root_uuid}
  linux /boot/vmlinuz quiet console=tty0 console=ttyS0,115200
  initrd /boot/initrd
}}
"""


def assemble(packages: Path, tree: Path, kernel: str, root_uuid: uuid.UUID) -> None:
    """Fill `tree` with the guest's files.

    Args:
        packages: A system with `PACKAGES`.
        tree: An empty directory.
        kernel: File name of the kernel in the system's ``boot``.
        root_uuid: The UUID of the file system that `tree` will be.
    """
    for name in _DIRECTORIES:
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        _write(tree / name, text, program=name in _PROGRAMS)
    (tree / "tmp").chmod(0o1777)
    _install_busybox(packages, tree)
    shutil.copy(packages / "boot" / kernel, tree / "boot/vmlinuz")
    _make_ram_disk(packages, tree / "boot/initrd", kernel.removeprefix("vmlinuz-"), root_uuid)
    (tree / "boot/grub/grub.cfg").write_text(_GRUB.format(root_uuid=root_uuid))


def _install_busybox(packages: Path, tree: Path) -> None:
    """Install BusyBox with a link for each of its programs."""
    (tree / "bin").mkdir(parents=True, exist_ok=True)
    (tree / "sbin").mkdir(exist_ok=True)
    for directory in ("usr/bin", "bin"):
        if (program := packages / directory / "busybox").is_file():
            shutil.copy(program, tree / "bin/busybox")
            break
    for applet in debian.run("chroot", str(packages), "busybox", "--list-full").split():
        link = tree / applet
        if link.name == "busybox" or not link.parent.is_dir():
            continue
        link.symlink_to("/bin/busybox")


def _make_ram_disk(packages: Path, out: Path, version: str, root_uuid: uuid.UUID) -> None:
    """Write an initial RAM disk that loads `MODULES` and changes to the root file system."""
    staging = packages / "tmp/ram"
    for name in ("dev", "proc", "sys", "mnt", "usr/bin", "usr/sbin"):
        (staging / name).mkdir(parents=True)
    _install_busybox(packages, staging)
    _write(staging / "init", _RAM_DISK_INIT.format(modules=MODULES, root_uuid=root_uuid), program=True)
    for module in MODULES.split():
        for line in debian.run("chroot", str(packages), "modprobe", "-S", version, "-D", module).splitlines():
            kind, _, path = line.partition(" ")
            if kind != "insmod":
                continue
            copy = staging / path.strip().lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(packages / path.strip().lstrip("/"), copy)
    modules = next(path for path in (staging / "lib/modules", staging / "usr/lib/modules") if path.is_dir())
    if modules.parent != staging / "lib":
        modules = modules.rename(staging / "lib/modules")
    for name in ("modules.order", "modules.builtin"):
        shutil.copy(packages / "lib/modules" / version / name, modules / version / name)
    script = f"depmod -b /tmp/ram {version} && cd /tmp/ram && find . | busybox cpio -o -H newc | gzip >/tmp/ram.gz"
    debian.run("chroot", str(packages), "sh", "-ec", script)
    shutil.move(packages / "tmp/ram.gz", out)


def _write(path: Path, text: str, *, program: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755 if program else 0o644)
