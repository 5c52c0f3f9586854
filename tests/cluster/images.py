"""Container images from a few files, without a builder: OCI archives that containerd imports."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
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


def write_archive(path: Path, name: str, files: Mapping[str, File], config: Mapping[str, object]) -> None:
    """Write an OCI image layout as a reproducible tar file.

    Args:
        path: The archive to write.
        name: The image's reference.
        files: The entries by path.
        config: The `config` object of the OCI image configuration.
    """
    layer = _layer(files)
    digest = hashlib.sha256(layer).hexdigest()
    blobs = [layer]

    def descriptor(kind: str, content: bytes) -> dict[str, object]:
        checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": checksum, "size": len(content)}

    configuration = json.dumps(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", configuration),
            "layers": [descriptor("layer.v1.tar", layer)],
        }
    ).encode()
    blobs += [configuration, manifest]
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                **descriptor("manifest.v1+json", manifest),
                "annotations": {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": name.rpartition(":")[2],
                },
            }
        ],
    }
    unfinished = path.with_name(path.name + ".new")
    with tarfile.open(unfinished, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(archive, "index.json", json.dumps(index).encode())
        for blob in blobs:
            _add(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
    unfinished.rename(path)


def _layer(files: Mapping[str, File]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for name, file in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.mode = file.mode
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
