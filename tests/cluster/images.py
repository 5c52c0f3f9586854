"""Container images from a few files, without a builder: OCI archives that containerd imports."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """An entry of an image: a file with content, a symbolic link with `link`, otherwise a directory."""

    content: bytes | None = None
    link: str = ""
    mode: int = 0o755
    capability: int | None = None
    """Capability that the program has when it is executed, a number of linux/capability.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image of one layer with `files`, above the layer `system` if there is one."""

    name: str
    """Its reference."""
    files: Mapping[str, File]
    """The entries by path."""
    config: Mapping[str, object]
    """The `config` object of the OCI image configuration."""
    system: Path | None = None
    """A tar file; images with the same one share it in the archive."""


def write_archive(path: Path, name: str, files: Mapping[str, File], config: Mapping[str, object]) -> None:
    """Write an archive of one image with one layer; `write_images` has the details."""
    write_images(path, Image(name=name, files=files, config=config))


def write_images(path: Path, *images: Image) -> None:
    """Write an OCI image layout as a reproducible tar file."""
    systems = {image.system: _descriptor_of(image.system) for image in images if image.system is not None}
    blobs: list[bytes] = []

    def descriptor(kind: str, content: bytes) -> dict[str, object]:
        blobs.append(content)
        return _descriptor(kind, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))

    manifests = []
    for image in images:
        layers = [systems[image.system]] if image.system is not None else []
        layers.append(descriptor("layer.v1.tar", _layer(image.files)))
        configuration = {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", json.dumps(configuration).encode()),
            "layers": layers,
        }
        annotations = {
            "io.containerd.image.name": image.name,
            "org.opencontainers.image.ref.name": image.name.rpartition(":")[2],
        }
        manifests.append({**descriptor("manifest.v1+json", json.dumps(manifest).encode()), "annotations": annotations})
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }
    unfinished = path.with_name(path.name + ".new")
    with tarfile.open(unfinished, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(archive, "index.json", json.dumps(index).encode())
        for system, described in systems.items():
            entry = tarfile.TarInfo(f"blobs/{str(described['digest']).replace(':', '/')}")
            entry.size = system.stat().st_size
            with system.open("rb") as content:
                archive.addfile(entry, content)
        for blob in dict.fromkeys(blobs):
            _add(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
    unfinished.rename(path)


def _descriptor(kind: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": size}


def _descriptor_of(layer: Path) -> dict[str, object]:
    with layer.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return _descriptor("layer.v1.tar", f"sha256:{digest}", layer.stat().st_size)


def _layer(files: Mapping[str, File]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as layer:
        for name, file in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.mode = file.mode
            if file.capability is not None:
                entry.pax_headers["SCHILY.xattr.security.capability"] = _capability(file.capability)
            if file.link:
                entry.type, entry.linkname = tarfile.SYMTYPE, file.link
                layer.addfile(entry)
            elif file.content is None:
                entry.type = tarfile.DIRTYPE
                layer.addfile(entry)
            else:
                entry.size = len(file.content)
                layer.addfile(entry, io.BytesIO(file.content))
    return buffer.getvalue()


def _capability(number: int) -> str:
    """Return `struct vfs_cap_data` of linux/capability.h, revision 2: permitted and effective."""
    return struct.pack("<5I", 0x02000001, 1 << number, 0, 0, 0).decode("ascii")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _text(lines: Iterable[str]) -> File:
    return File(content="".join(lines).encode(), mode=0o644)


def pause(path: Path, name: str, program: Path) -> None:
    """Write the image of the container that holds a pod's namespaces."""
    write_archive(path, name, {"pause": File(content=program.read_bytes())}, {"Entrypoint": ["/pause"]})


def base_parts() -> list[Path]:
    """Return this machine's files for the base image: busybox, curl and the libraries that they load.

    Raises:
        CalledProcessError: The libraries cannot be determined.
    """
    return parts("busybox", "curl")


def parts(*programs: str) -> list[Path]:
    """Return programs of this machine, each followed by the libraries that it loads.

    Raises:
        CalledProcessError: The libraries cannot be determined.
    """
    found: dict[Path, None] = {}
    for program in programs:
        path = shutil.which(program)
        assert path is not None, "the requirements were checked before"
        found[Path(os.path.realpath(path))] = None
        told = subprocess.run(["ldd", path], check=False, capture_output=True, text=True)
        if told.returncode and "not a dynamic executable" not in told.stderr:
            told.check_returncode()
        found |= {Path(library): None for library in re.findall(r"(/\S+) \(0x", told.stdout)}
    return list(found)


def base(path: Path, name: str) -> None:
    """Write the base image: busybox under each of its names, curl, a few users and /tmp."""
    busybox, *others = base_parts()
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    users = {"root": 0, "nobody": 65534, "qemu": 107}
    # A static busybox crashes when it resolves a host name, so its wget is left out.
    files = {f"bin/{applet}": File(link="busybox") for applet in applets if applet not in {"busybox", "wget"}}
    for part in others:
        place = Path("bin", part.name) if part.name == "curl" else part.relative_to("/")
        files |= {str(directory): File() for directory in place.parents if directory != Path()}
        files[str(place)] = File(content=part.read_bytes())
    files |= {
        "bin": File(),
        "bin/busybox": File(content=busybox.read_bytes()),
        "etc": File(),
        "etc/nsswitch.conf": _text(["hosts: files dns\n"]),
        "etc/passwd": _text(f"{user}:x:{number}:{number}::/:/bin/sh\n" for user, number in users.items()),
        "etc/group": _text(f"{user}:x:{number}:\n" for user, number in users.items()),
        "tmp": File(mode=0o1777),
    }
    write_archive(path, name, files, {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]})
