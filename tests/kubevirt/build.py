"""Builds of KubeVirt: its programs, the Debian system that they run on, and their container images.

    python -m tests.kubevirt.build [--check]

builds what is missing; with --check it only reports, in one line, whether something is.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cdi.cli.elapsed import Elapsed
from tests.cluster.build import directory_inputs, keep_program, program_path, run_go
from tests.cluster.images import File, Image, write_images
from tests.cluster.layout import ClusterError, Layout

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import debian  # noqa: E402 - after the path is set

REGISTRY = "images.cdi.test"

_PROGRAMS = "KubeVirt's programs"
_COLD_BUILD = "about an hour on two cores"
_MODULE = Path(__file__).resolve().parent / "programs"
_KUBEVIRT = "kubevirt.io/kubevirt"
_SERVICES = ("virt-operator", "virt-api", "virt-controller", "virt-exportproxy", "virt-exportserver")
"""Programs that need nothing beside them in their images."""
_HELPERS = ("virt-chroot", "virt-freezer", "virt-launcher-monitor", "virt-probe", "virt-tail")
_WITH_C = ("virt-handler", "virt-launcher")
_CONFIGURATION = ("qemu", "qemu.conf", "virtqemud.conf", "nsswitch.conf", "node-labeller/node-labeller.sh")
"""Files of the module's cmd/virt-launcher that belong into its image."""
_COMPILER = "gcc"

_SUITE = "trixie"
_PACKAGES = (
    "libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-daemon-log", "libvirt-clients",
    "qemu-system-x86", "qemu-utils", "ovmf", "seabios", "swtpm", "swtpm-tools", "passt",
    "nftables", "iproute2", "iptables", "ethtool", "kmod",
    "procps", "util-linux", "findutils", "tar", "curl", "xorriso", "dosfstools", "e2fsprogs", "dmidecode", "libcap2-bin",
)  # fmt: skip

_QEMU_USER = 107  # fixed in KubeVirt's code
_SERVICE_USER = "1001"
_CAP_NET_BIND_SERVICE = 10
# virt-handler recognizes the daemon by its process name, which is the file name that was executed.
_VIRTQEMUD = """#!/bin/sh
# Debian has no virtqemud. Its libvirtd contains the same drivers and has another socket.
mkdir -p /run/libvirt
ln -sfn libvirt-sock /run/libvirt/virtqemud-sock
exec /usr/lib/kubevirt/virtqemud "$@"
"""

Say = Callable[[str], None]


def version() -> str:
    """Return the KubeVirt version that go.mod pins."""
    found = re.search(rf"^\s*{re.escape(_KUBEVIRT)} (v\S+)$", (_MODULE / "go.mod").read_text(), re.MULTILINE)
    assert found is not None, "go.mod pins KubeVirt"
    return found[1]


def missing(layout: Layout) -> list[str]:
    """Return which builds of the current sources do not exist yet."""
    return [what for what, path in _paths(layout).items() if not path.exists()]


def _paths(layout: Layout) -> dict[str, Path]:
    return {
        _PROGRAMS: program_path(layout, "virt-programs", _program_inputs()),
        "the Debian system for QEMU": program_path(layout, "virt-system.tar", _system_inputs()),
        "the container images": program_path(layout, "virt-images.tar", _image_inputs()),
    }


def build(layout: Layout, say: Say) -> tuple[Path, Path]:
    """Return the directory of the programs and the archive of the images, building what is missing.

    Raises:
        ClusterError: A build failed.
    """
    if lacking := missing(layout):
        duration = f": {_COLD_BUILD} unless Go has compiled them before" if lacking[0] == _PROGRAMS else ""
        say(f"building {', '.join(lacking)}{duration}")
    programs = keep_program(layout, "virt-programs", _program_inputs(), partial(_build_programs, layout))
    system = keep_program(layout, "virt-system.tar", _system_inputs(), _build_system)

    def build_images(directory: Path) -> None:
        with Elapsed("kubevirt: writing the images"):
            write_images(directory / "virt-images.tar", *_images(programs, system))

    return programs, keep_program(layout, "virt-images.tar", _image_inputs(), build_images)


# --- Inputs -------------------------------------------------------------------------------------------------------


def _program_inputs() -> object:
    return directory_inputs(_MODULE), _SERVICES, _HELPERS, _WITH_C, _CONFIGURATION


def _system_inputs() -> object:
    return _SUITE, _PACKAGES


def _image_inputs() -> object:
    sources = [Path(__file__), Path(sys.modules[File.__module__].__file__ or "")]
    return _program_inputs(), _system_inputs(), [path.read_bytes() for path in sources]


# --- Programs -----------------------------------------------------------------------------------------------------


def _build_programs(layout: Layout, directory: Path) -> None:
    programs = directory / "virt-programs"
    programs.mkdir()
    linker = f"-s -w -X kubevirt.io/client-go/version.gitVersion={version()}"
    arguments = ("build", "-trimpath", "-buildvcs=false", "-ldflags", linker, "-o", f"{programs}/")

    def packages(*names: str) -> list[str]:
        return [f"{_KUBEVIRT}/cmd/{name}" for name in names]

    run_go(layout, _MODULE, *arguments, "./manifests", *packages(*_SERVICES, *_HELPERS))
    if shutil.which(_COMPILER) is None:
        raise ClusterError(f"missing: {_COMPILER} (scripts/setup kubevirt installs it)")
    # libvirt's library is loaded at run time, so its headers are not needed.
    run_go(layout, _MODULE, *arguments, "-tags", "libvirt_dlopen", *packages(*_WITH_C), cgo=True)
    commands = Path(run_go(layout, _MODULE, "list", "-m", "-f", "{{.Dir}}", _KUBEVIRT).strip()) / "cmd"
    _compile(commands / "container-disk-v2alpha" / "main.c", programs / "container-disk")
    for name in _CONFIGURATION:
        shutil.copyfile(commands / "virt-launcher" / name, programs / Path(name).name)


def _compile(source: Path, program: Path) -> None:
    command = [_COMPILER, "-Os", "-static", "-o", str(program), str(source)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ClusterError(f"{source.name} cannot be compiled: {done.stderr.strip().splitlines()[-1]}")


def _build_system(directory: Path) -> None:
    try:
        debian.bootstrap(directory / "virt-system.tar", _PACKAGES, kind="tar", suite=_SUITE)
    except SystemExit as error:
        raise ClusterError(str(error)) from error


# --- Images -------------------------------------------------------------------------------------------------------


def _images(programs: Path, system: Path) -> list[Image]:
    def executable(name: str, *, capability: int | None = None) -> dict[str, File]:
        return {f"usr/bin/{name}": File(content=(programs / name).read_bytes(), capability=capability)}

    def image(name: str, files: dict[str, File], *, user: str = "", base: Path | None = None) -> Image:
        config = {
            "Entrypoint": [f"/usr/bin/{name}"],
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            **({"User": user} if user else {}),
        }
        return Image(name=f"{REGISTRY}/{name}:{version()}", files=files, config=config, system=base)

    common = {**_accounts(system), "etc/nsswitch.conf": _text((programs / "nsswitch.conf").read_text())}
    services = [image(name, {"tmp": File(mode=0o1777), **executable(name)}, user=_SERVICE_USER) for name in _SERVICES]
    handler = {**common, **executable("virt-handler"), **executable("virt-chroot")}
    launcher = {
        **common,
        **{name: file for program in ("virt-launcher", "virt-freezer", "virt-probe", "virt-tail", "container-disk",
                                      "node-labeller.sh") for name, file in executable(program).items()},
        **executable("virt-launcher-monitor", capability=_CAP_NET_BIND_SERVICE),
        **_libvirt(programs),
        **{f"usr/share/OVMF/{name}": File(link=target) for name, target in _FIRMWARE.items()},
        # virt-handler opens the console's socket below /proc/PID/root, where an absolute link leads to its own root.
        "var/run": File(link="../run"),
    }  # fmt: skip
    return [
        *services,
        image("virt-handler", handler, base=system),
        image("virt-launcher", launcher, base=system),
    ]


_FIRMWARE = {
    "OVMF_CODE.fd": "OVMF_CODE_4M.fd",
    "OVMF_VARS.fd": "OVMF_VARS_4M.fd",
    "OVMF_CODE.secboot.fd": "OVMF_CODE_4M.secboot.fd",
    "OVMF_VARS.secboot.fd": "OVMF_VARS_4M.ms.fd",
}
"""Names that KubeVirt expects, and Debian's."""


def _libvirt(programs: Path) -> dict[str, File]:
    settings = {name: _text((programs / name).read_text()) for name in ("qemu.conf", "virtqemud.conf")}
    return {
        **{f"etc/libvirt/{name}": file for name, file in settings.items()},
        "etc/libvirt/hooks/qemu": File(content=(programs / "qemu").read_bytes()),
        "usr/lib/kubevirt/virtqemud": File(link="/usr/sbin/libvirtd"),
        "usr/sbin/virtqemud": File(content=_VIRTQEMUD.encode()),
    }


def _accounts(system: Path) -> dict[str, File]:
    """Return the system's users and groups, with KubeVirt's user of QEMU."""
    lines = {
        "passwd": f"qemu:x:{_QEMU_USER}:{_QEMU_USER}:qemu:/home/qemu:/bin/bash\n",
        "group": f"qemu:x:{_QEMU_USER}:\n",
    }
    with tarfile.open(system) as archive:
        for name, line in lines.items():
            file = archive.extractfile(f"./etc/{name}")
            assert file is not None, "it is a regular file"
            before = file.read().decode().splitlines(keepends=True)
            lines[name] = "".join(each for each in before if each.split(":")[2] != str(_QEMU_USER)) + line
    return {f"etc/{name}": _text(text) for name, text in lines.items()}


def _text(content: str) -> File:
    return File(content=content.encode(), mode=0o644)


def main(arguments: list[str]) -> int:
    """Build, or report what is missing; return the exit status."""
    layout = Layout.default()
    if arguments == ["--check"]:
        lacking = missing(layout)
        if lacking:
            print(f"not built: {', '.join(lacking)}")
        return 1 if lacking else 0
    try:
        build(layout, lambda text: print(f"kubevirt: {text}", file=sys.stderr, flush=True))
    except ClusterError as error:
        print(f"kubevirt: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
