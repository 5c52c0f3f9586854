"""Tests of the selection of the disk in a tar archive or OVA, and of the manifest's digest."""

import pytest

from cdi.api.errors import CdiError, ChecksumMismatch, DiskNotInImage, FormatUnsupported, ImageCorrupt, ImageUnsafe
from cdi.codec.tar import members
from cdi.transfer.tar_disk import TarDisk
from tests.ova_writer import NAMESPACE, descriptor, manifest, ova

DISK, SECOND = b"first disk" * 1000, b"second disk" * 1000
OVF = ("vm.ovf", descriptor(["disk.vmdk"]))
TWO = ("vm.ovf", descriptor(["disk.vmdk", "second.vmdk"]))
FILES = (("disk.vmdk", DISK), ("second.vmdk", SECOND))


def read(*archive, wanted=None):
    selection = TarDisk(wanted, "memory:")
    data = ova(*archive)
    pieces = (memoryview(data)[at : at + 1000] for at in range(0, len(data), 1000))
    return b"".join(bytes(piece) for piece in selection.content(members(pieces))), selection


def refused(*archive, wanted=None):
    with pytest.raises(CdiError) as caught:
        read(*archive, wanted=wanted)
    return caught.value


class TestPackage:
    @pytest.mark.parametrize(
        "archive",
        [
            [OVF, FILES[0]],
            [OVF, ("vm.mf", b""), ("vm.cert", b"x"), ("firmware.nvram", b"x"), FILES[0], ("cd.iso", b"x")],
            [FILES[0], OVF],
            [("export/vm.ovf", descriptor(["disk.vmdk"])), ("./export/disk.vmdk", DISK)],
            [("vm.ovf", descriptor(["my%20disk.vmdk"], others=["cd.iso"])), ("cd.iso", b"x"), ("my disk.vmdk", DISK)],
            [("vm.OVF", descriptor(["disk.vmdk", None])), FILES[0]],
            [("vm.ovf", OVF[1].replace(NAMESPACE.encode(), b"http://www.vmware.com/schema/ovf/1/envelope")), FILES[0]],
        ],
    )
    def test_its_one_disk_is_read(self, archive):
        assert read(*archive)[0] == DISK

    def test_several_disks_are_refused_with_their_names_before_any_is_read(self):
        error = refused(TWO, *FILES)
        assert isinstance(error, DiskNotInImage)
        assert "2 disks: 'disk.vmdk', 'second.vmdk'" in error.what
        assert "cdi.kubevirt.io/policy.disk" in error.remedy
        assert "2 disks" in refused(TWO).what

    def test_a_chosen_disk_is_read(self):
        assert read(TWO, *FILES, wanted="second.vmdk")[0] == SECOND
        assert (
            "no disk 'third.vmdk'; its disks are 'disk.vmdk', 'second.vmdk'" in refused(TWO, wanted="third.vmdk").what
        )

    @pytest.mark.parametrize(
        ("archive", "kind", "words"),
        [
            ([OVF], DiskNotInImage, "does not contain the disk 'disk.vmdk'"),
            ([OVF, ("other.vmdk", DISK)], DiskNotInImage, "it contains 'other.vmdk'"),
            ([OVF, FILES[0], FILES[0]], DiskNotInImage, "'disk.vmdk' twice"),
            ([OVF, OVF, FILES[0]], DiskNotInImage, "second descriptor"),
            ([FILES[1], OVF, FILES[0]], DiskNotInImage, "'second.vmdk' precedes the descriptor"),
            ([("vm.ovf", descriptor([None]))], DiskNotInImage, "without a disk"),
            ([("vm.ovf", b"<Envelope>")], ImageCorrupt, "not well-formed"),
            ([("vm.ovf", b"<?xml version='1.0' encoding='bogus'?><x/>")], ImageCorrupt, "unknown encoding: bogus"),
            ([("vm.ovf", b"<?xml version='1.0' encoding='shift_jis'?><x/>")], ImageCorrupt, "multi-byte encodings"),
            ([("vm.ovf", b"<!DOCTYPE x [<!ENTITY a 'aa'>]><x>&a;</x>")], ImageUnsafe, "document type"),
            ([("vm.ovf", descriptor(["../disk.vmdk"]))], ImageUnsafe, "outside of the archive"),
            ([("vm.ovf", descriptor(["https://example.org/disk.vmdk"]))], ImageUnsafe, "outside of the archive"),
            (
                [("vm.ovf", descriptor(["disk.vmdk"], attributes='ovf:chunkSize="5"'))],
                FormatUnsupported,
                "several files",
            ),
            ([("vm.ovf", OVF[1].replace(b'ovf:id="file0"', b'ovf:id="x"'))], ImageCorrupt, "not listed"),
            ([("vm.ovf", bytes(2 << 20))], ImageUnsafe, "more than"),
            ([("vm.ovf", descriptor(["disk.vmdk"] * 2000))], ImageUnsafe, "entries"),
            ([("vm.ovf", b"<a>" * 2000)], ImageUnsafe, "entries"),
        ],
    )
    def test_what_is_refused(self, archive, kind, words):
        error = refused(*archive)
        assert type(error) is kind
        assert words in error.what


class TestManifest:
    @pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA512"])
    def test_in_front_of_the_disk(self, algorithm):
        listed = ("vm.mf", manifest(dict([OVF, FILES[0]]), algorithm))
        data, selection = read(OVF, listed, FILES[0])
        assert (data, selection.verified_by, selection.warning) == (DISK, "vm.mf", None)

    @pytest.mark.parametrize("algorithm", ["SHA1", "SHA256"])
    def test_after_the_disk(self, algorithm):
        assert read(OVF, FILES[0], ("vm.mf", manifest(dict([FILES[0]]), algorithm)))[1].verified_by == "vm.mf"

    def test_an_algorithm_that_was_not_computed_is_a_warning(self):
        selection = read(OVF, FILES[0], ("vm.mf", manifest(dict([FILES[0]]), "SHA512")))[1]
        assert selection.verified_by is None
        assert "sha512" in selection.warning

    @pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
    def test_another_digest_is_refused(self, order):
        archive = [OVF, ("vm.mf", manifest({"disk.vmdk": SECOND})), FILES[0]]
        error = refused(*(archive[at] for at in order))
        assert isinstance(error, ChecksumMismatch)
        assert "vm.mf" in error.what

    def test_of_a_chosen_disk(self):
        listed = ("vm.mf", manifest({"disk.vmdk": b"not this", "second.vmdk": SECOND}))
        assert read(TWO, listed, *FILES, wanted="second.vmdk")[1].verified_by == "vm.mf"

    def test_that_does_not_list_the_disk_proves_nothing(self):
        assert read(OVF, ("vm.mf", manifest({"vm.ovf": OVF[1]})), FILES[0])[1].verified_by is None


class TestPlainArchive:
    def test_a_chosen_file_is_read(self):
        assert read(*FILES, ("readme", b"x"), wanted="./second.vmdk")[0] == SECOND

    def test_several_files_are_refused(self):
        assert "'disk.vmdk' and 'second.vmdk'" in refused(*FILES).what

    def test_a_file_that_is_not_there_is_refused_with_the_names_of_the_others(self):
        error = refused(*((f"file{n}", b"x") for n in range(20)), wanted="disk")
        assert "does not contain the disk 'disk'; it contains 'file0', " in error.what
        assert "file19" not in error.what
