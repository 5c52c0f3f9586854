"""NoCloud seed: a small ISO 9660 volume labelled ``cidata``, from which cloud-init reads a VM's first settings.

Joliet and Rock Ridge both have the file names that cloud-init expects; the kernels of guests read one of them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

MAX_FILE = 1 << 20
MAX_FILES = 16


def nocloud(files: Mapping[str, str], *, marker: str) -> bytes:
    """Return the seed's image, with a script that prints `marker` on the serial console at the end of the boot.

    `files` are those of cloud-init's NoCloud data source (``meta-data``, ``user-data``, ``vendor-data``,
    ``network-config``) and override the built-in ones. The script is the user-data, or the vendor-data if a user-data
    is given. Raises `ValueError` for other names.
    """
    known = ("meta-data", "user-data", "vendor-data", "network-config")
    if unknown := sorted(set(files) - set(known)):
        raise ValueError(f"a seed has no file named {', '.join(unknown)}")
    contents = {"meta-data": f"instance-id: {marker}\nlocal-hostname: boot-check\n"}
    contents["vendor-data" if "user-data" in files else "user-data"] = script(marker)
    contents.setdefault("user-data", "#cloud-config\n{}\n")
    contents |= files
    return iso9660({name: text.encode() for name, text in contents.items()}, label="cidata")


def script(marker: str) -> str:
    """Return a script for cloud-init's last stage that prints the marker.

    The marker is assembled when the script runs, so that printing the script itself does not print the marker.
    """
    head, tail = marker[: len(marker) // 2], marker[len(marker) // 2 :]
    return (
        "#!/bin/sh\n"
        f"head={head} tail={tail}\n"
        "for console in /dev/ttyS0 /dev/ttyAMA0 /dev/hvc0; do\n"
        '    [ -c "$console" ] && printf "\\n%s%s\\n" "$head" "$tail" > "$console" 2>/dev/null\n'
        "done\n"
        "exit 0\n"
    )


def iso9660(files: Mapping[str, bytes], *, label: str) -> bytes:
    """Return an image with `files` in its root; raise `ValueError` if they are too many or too large."""
    if len(files) > MAX_FILES or any(len(content) > MAX_FILE for content in files.values()):
        raise ValueError("a seed may contain only a few small files")
    # The import takes a fifth of a second of CPU time, which only a boot check spends.
    import pycdlib

    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, vol_ident=label, joliet=3, rock_ridge="1.09")
    for name, content in files.items():
        plain = name.upper().replace("-", "_")
        image.add_fp(io.BytesIO(content), len(content), iso_path=f"/{plain}.;1", rr_name=name, joliet_path=f"/{name}")
    output = io.BytesIO()
    image.write_fp(output)
    image.close()
    return output.getvalue()
