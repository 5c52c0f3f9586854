import io
import os
import tarfile

from cdi.image.tar_header import BLOCK
from cdi.source.registry.tar_index import index_tar


def test_a_number_ends_at_its_first_nul():
    """As in all other fields; behind it may be anything, and other programs do not read it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a"))
        archive.addfile(tarfile.TarInfo("b"))
    header = bytearray(packed.getvalue()[:BLOCK])
    header[124:136] = b"\0" * 10 + b"5\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = bytes(header) + packed.getvalue()[BLOCK:]
    with os.fdopen(os.memfd_create("archive"), "w+b", buffering=0) as file:
        file.write(data)
        found = [(each.name, each.offset, each.size) for each in index_tar(file.fileno(), len(data), where="x")]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert found == [(each.name, each.offset_data, each.size) for each in archive] == [("a", 512, 0), ("b", 1024, 0)]
