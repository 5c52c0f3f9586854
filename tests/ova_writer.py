"""Small OVAs: tar archives of a descriptor, disks and a manifest, in any order."""

import hashlib
import io
import tarfile

NAMESPACE = "http://schemas.dmtf.org/ovf/envelope/1"


def descriptor(disks, *, others=(), attributes=""):
    """Return an OVF descriptor of a virtual machine with `disks`, names of files; None is a disk without a file."""
    files = [f'<File ovf:href="{name}" ovf:id="file{n}" ovf:size="1" {attributes}/>' for n, name in enumerate(disks)]
    files += [f'<File ovf:href="{name}" ovf:id="other{n}"/>' for n, name in enumerate(others)]
    listed = [
        f'<Disk ovf:capacity="1" ovf:diskId="disk{n}" {"" if name is None else f"""ovf:fileRef="file{n}" """}/>'
        for n, name in enumerate(disks)
    ]
    return (
        f'<?xml version="1.0"?>\n<Envelope xmlns="{NAMESPACE}" xmlns:ovf="{NAMESPACE}"><References>{"".join(files)}'
        f"</References><DiskSection><Info>disks</Info>{''.join(listed)}</DiskSection></Envelope>"
    ).encode()


def manifest(files, algorithm="SHA256"):
    """Return a manifest of `files`, by name."""
    name = algorithm.lower()
    return "".join(
        f"{algorithm}({key})= {hashlib.new(name, data).hexdigest()}\n" for key, data in files.items()
    ).encode()


def ova(*members):
    """Return an archive of ``(name, content)``, in that order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()
