"""Command line of the boot check's virtual machine: devices as in KubeVirt, and no access to the outside.

The disk is never written: the VM writes to a temporary qcow2 overlay. There is a network card, because some systems
wait for one, on a network without any peer (``restrict=on``, in an empty network namespace).
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cdi.api.errors import BootFailed, QemuMissing
from cdi.transfer.qemu import sandbox

Firmware = Literal["bios", "uefi"]
Accelerator = Literal["kvm", "tcg"]

QEMU_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}
"""QEMU's names of architectures, by those of OCI."""

PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
"""Debian's packages of the emulators."""

CODE_AND_VARS = {
    "x86_64": (
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
        ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
        ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
        ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
        ("/usr/local/share/qemu/edk2-x86_64-code.fd", "/usr/local/share/qemu/edk2-i386-vars.fd"),
    ),
    "aarch64": (
        ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
        ("/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "/usr/share/edk2/aarch64/vars-template-pflash.raw"),
        ("/usr/share/qemu/edk2-aarch64-code.fd", "/usr/share/qemu/edk2-arm-vars.fd"),
        ("/usr/local/share/qemu/edk2-aarch64-code.fd", "/usr/local/share/qemu/edk2-arm-vars.fd"),
    ),
}
"""Paths of UEFI firmware and its empty variable store in distributions; the first existing pair is used."""

FIRMWARE_PLACES = (
    "/usr/share/seabios",
    "/usr/share/vgabios",
    "/usr/share/qemu-firmware",
    "/usr/share/OVMF",
    "/usr/share/AAVMF",
    "/usr/share/edk2",
    "/usr/share/qemu-efi-aarch64",
)
"""Directories of distributions that QEMU's own data directory links to."""

EFI_SYSTEM = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")
"""The partition type of an EFI system partition in a GPT (UEFI 2.10, 5.3.3), in its stored byte order."""

SECTOR = 512

TRANSLATED_CODE = 256 << 20
"""Bytes of translated code that emulation keeps; a boot of Debian translates less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The configuration of the virtual machine."""

    arch: str
    """QEMU's name of the architecture: x86_64, aarch64."""
    firmware: Firmware
    code: str | None
    """The file of the UEFI firmware."""
    variables: str | None
    """A copy of its variable store, writable by the VM."""
    accelerator: Accelerator
    memory: int
    """Bytes."""
    disk: str
    disk_is_block: bool
    overlay: str
    seed: str

    @property
    def program(self) -> str:
        return f"qemu-system-{self.arch}"

    @property
    def cpu(self) -> str:
        """The CPU model with all features except IA32_ARCH_CAPABILITIES.

        Hypervisors with nested KVM often expose this MSR and refuse to set it, which makes QEMU abort. It only
        describes mitigations, and no system needs it to boot.
        """
        if self.accelerator == "tcg":
            return "max"
        return "host,arch-capabilities=off" if self.arch == "x86_64" else "host"

    @property
    def _accelerator_options(self) -> str:
        # Unless it is given, QEMU reserves an eighth of the host's memory for translated code, and uses it in time.
        return f"tcg,tb-size={TRANSLATED_CODE >> 20}" if self.accelerator == "tcg" else self.accelerator

    def arguments(self, *, monitor: int, console: int) -> list[str]:
        """Return QEMU's arguments without the program; the descriptors are the sockets for QMP and the serial console.

        The VM is started in the stopped state.
        """
        kind = "q35,graphics=off" if self.arch == "x86_64" else "virt,gic-version=max"
        arguments = ["-nodefaults", "-no-user-config", "-display", "none", "-S", "-name", "boot-check"]
        arguments += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        arguments += ["-machine", kind, "-cpu", self.cpu, "-accel", self._accelerator_options]
        arguments += ["-m", f"size={max(1, self.memory >> 20)}M", "-smp", str(min(2, os.cpu_count() or 1))]
        arguments += ["-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"]
        arguments += ["-chardev", f"socket,id=console,fd={console}", "-serial", "chardev:console"]
        arguments += ["-boot", "strict=on", "-device", "pvpanic" if self.arch == "x86_64" else "pvpanic-pci"]
        for node in self._nodes():
            arguments += ["-blockdev", json.dumps(node)]
        arguments += ["-device", "virtio-blk-pci,drive=disk,bootindex=1", "-device", "virtio-blk-pci,drive=seed"]
        arguments += ["-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng"]
        arguments += ["-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile="]
        if self.firmware == "uefi":
            arguments += ["-drive", f"if=pflash,format=raw,readonly=on,file={escaped(self.code)}"]
            arguments += ["-drive", f"if=pflash,format=raw,file={escaped(self.variables)}"]
        return arguments

    def _nodes(self) -> list[dict[str, Any]]:
        file = {
            "driver": "host_device" if self.disk_is_block else "file",
            "filename": self.disk,
            "read-only": True,
            "auto-read-only": False,
            "locking": "off",
        }
        return [
            {
                "driver": "qcow2",
                "node-name": "disk",
                "file": {"driver": "file", "filename": self.overlay},
                "backing": {"driver": "raw", "file": file, "read-only": True},
                "discard": "unmap",
            },
            {
                "driver": "raw",
                "node-name": "seed",
                "file": {"driver": "file", "filename": self.seed, "read-only": True},
                "read-only": True,
            },
        ]


def escaped(path: str | None) -> str:
    """Escape a path for QEMU's comma-separated options."""
    return (path or "").replace(",", ",,")


def host_arch() -> str:
    """Return QEMU's name of this machine's architecture."""
    machine = platform.machine().lower()
    return QEMU_NAMES.get(machine, machine)


def machine_arch(architecture: str | None) -> str:
    """Return QEMU's name of an OCI architecture (None: this machine's); raise `QemuMissing` without its emulator."""
    arch = host_arch() if architecture is None else QEMU_NAMES.get(architecture, architecture)
    if re.fullmatch(r"[a-z0-9_]{1,32}", arch) is None:
        raise QemuMissing("the architecture has no name that QEMU knows", remedy="import it for amd64 or arm64")
    try:
        sandbox.find(f"qemu-system-{arch}")
    except QemuMissing as error:
        package = PACKAGES.get(arch, f"QEMU for {arch}")
        raise QemuMissing(
            error.what, remedy=f"install {package}; in a cluster, use a worker image that contains it"
        ) from error
    return arch


def accelerators(*, tcg: bool) -> tuple[Accelerator, ...]:
    """Return the usable accelerators, best first; raise `BootFailed` if there is none."""
    kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    if kvm:
        return ("kvm", "tcg") if tcg else ("kvm",)
    if not tcg:
        raise BootFailed(
            "there is no usable /dev/kvm, and emulation is not allowed",
            remedy="give access to /dev/kvm, or allow emulation (slower)",
        )
    return ("tcg",)


def is_nested() -> bool:
    """Return whether this machine is a virtual one itself."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return any(line.startswith("flags") and " hypervisor" in line for line in file)
    except OSError:
        return False


def uefi_files(arch: str) -> tuple[str, str]:
    """Return the paths of firmware and variable store; raise `QemuMissing`."""
    for code, variables in CODE_AND_VARS.get(arch, ()):
        if os.path.exists(code) and os.path.exists(variables):
            return code, variables
    raise QemuMissing(
        f"no UEFI firmware for {arch} is installed",
        remedy="install ovmf (x86_64) or qemu-efi-aarch64, or check the boot with the BIOS",
    )


def choose_firmware(read_at: Callable[[int, int], bytes], arch: str) -> Firmware:
    """Return the firmware that the disk is made for: BIOS if it has boot code, else UEFI if it has a system partition.

    Images for both boot with either, and the BIOS is faster. A disk that is not recognised gets the BIOS, which reports
    clearly that nothing is bootable.
    """
    if arch != "x86_64":
        return "uefi"
    first = read_at(0, SECTOR)
    if len(first) < SECTOR or first[510:512] != b"\x55\xaa":
        return "bios"
    if any(first[:440].rstrip(b"\0")):
        return "bios"
    for number in range(4):
        if first[446 + 16 * number + 4] == 0xEF:
            return "uefi"
    header = read_at(SECTOR, 92)
    if len(header) < 92 or header[:8] != b"EFI PART":
        return "bios"
    first_entry, count, size = struct.unpack_from("<QII", header, 72)
    if not 128 <= size <= 4096 or first_entry > 1 << 40:
        return "bios"
    for number in range(min(count, 128)):
        if read_at(first_entry * SECTOR + number * size, 16) == EFI_SYSTEM:
            return "uefi"
    return "bios"


def prepare_uefi(arch: str, directory: str) -> tuple[str, str]:
    """Return the firmware's path and that of a copy of its variables in `directory`; raise `QemuMissing`."""
    code, variables = uefi_files(arch)
    own = os.path.join(directory, "variables.fd")
    shutil.copyfile(variables, own)
    os.chmod(own, 0o600)
    return code, own
