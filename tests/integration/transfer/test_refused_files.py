"""Tests of files that are no image, or an unusual one, as real programs write them: errors of import and inspection."""

import gzip
import lzma
import os
import random
import subprocess

import pytest
from backports import zstd

from cdi.api.job import FileSourceSpec, FileTargetSpec, Job, Policy
from cdi.explain.examine import examine
from cdi.explain.findings import Ask
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.ova_writer import descriptor, manifest

MIB = 1 << 20
DISK = random.Random(8).randbytes(MIB) + bytes(MIB)


def run(*command, cwd):
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)


@pytest.fixture
def made(tmp_path):
    """Make a directory with a disk in several formats."""
    directory = tmp_path / "made"
    directory.mkdir()
    (directory / "disk.raw").write_bytes(DISK)
    for kind, options in {"qcow2": [], "qed": [], "parallels": [], "vmdk": ["-o", "subformat=streamOptimized"]}.items():
        run("qemu-img", "convert", "-f", "raw", "-O", kind, *options, "disk.raw", f"disk.{kind}", cwd=directory)
    return directory


class Import:
    def __init__(self, path, tmp_path, policy=None):
        for name in ("volume", "scratch"):
            (tmp_path / name).mkdir(exist_ok=True)
        self.disk = tmp_path / "volume/disk.img"
        self.job = Job(
            id="x",
            source=FileSourceSpec(path=str(path)),
            target=FileTargetSpec(path=str(self.disk)),
            scratch=str(tmp_path / "scratch"),
            policy=policy or Policy(),
        )

    def gives(self, *wrappers, kind="qcow2"):
        outcome = transfer(self.job, TransferControl(self.job))
        assert outcome.failure is None, outcome.failure
        assert (outcome.format, outcome.wrappers) == (kind, wrappers)
        assert self.disk.read_bytes() == DISK
        found = examine(self.job, TransferControl(self.job), Ask(digest=True))
        assert (found.refusal, found.wrappers) == (None, wrappers)
        self.disk.unlink()
        return outcome

    def refuses(self, code, *says):
        failure = transfer(self.job, TransferControl(self.job)).failure
        assert failure is not None and failure.code == code, failure
        for words in says:
            assert words in failure.message
        assert os.listdir(self.disk.parent) == []
        refusal = examine(self.job, TransferControl(self.job), Ask(digest=True, whole=True)).refusal
        assert refusal is not None and refusal.message == failure.message
        return failure


class TestTars:
    @pytest.mark.parametrize("form", ["gnu", "oldgnu", "posix"])
    def test_with_a_label(self, made, tmp_path, form):
        run("tar", "-c", f"--format={form}", "--label=backup of the disk", "-f", "l.tar", "disk.qcow2", cwd=made)
        Import(made / "l.tar", tmp_path).gives("tar")

    @pytest.mark.parametrize("form", ["gnu", "oldgnu", "posix"])
    @pytest.mark.parametrize("label", [[], ["--label=v"]])
    def test_of_several_volumes(self, made, tmp_path, form, label):
        volumes = [f"--file=v{n}.tar" for n in range(6)]
        run("tar", "-c", "-M", "-L", "300", f"--format={form}", *label, *volumes, "disk.qcow2", cwd=made)
        Import(made / "v0.tar", tmp_path).refuses("ContentTruncated", "ends before its end mark")
        Import(made / "v1.tar", tmp_path).refuses(
            "FormatUnsupported", "a later volume of several, and continues 'disk.qcow2'", "extract all volumes"
        )

    @pytest.mark.parametrize("wrap", [bytes, gzip.compress])
    @pytest.mark.parametrize("packed", [False, True])
    def test_an_ova(self, made, tmp_path, wrap, packed):
        disk = (made / "disk.vmdk").read_bytes()
        content = gzip.compress(disk) if packed else disk
        (made / "vm disk.vmdk").write_bytes(content)
        (made / "vm.ovf").write_bytes(descriptor(["vm%20disk.vmdk"]))
        (made / "vm.mf").write_bytes(manifest({"vm disk.vmdk": content}))
        run("tar", "-c", "--format=ustar", "-f", "vm.ova", "vm.ovf", "vm.mf", "vm disk.vmdk", cwd=made)
        (made / "vm.ova").write_bytes(wrap((made / "vm.ova").read_bytes()))
        wrappers = (*(["gz"] if wrap is not bytes else []), "tar", *(["gz"] if packed else []))
        outcome = Import(made / "vm.ova", tmp_path).gives(*wrappers, kind="vmdk")
        assert "vm.mf" in outcome.verified_by

    def test_an_ova_whose_disk_qemu_reads_is_verified_by_its_manifest(self, made, tmp_path):
        (made / "vm.ovf").write_bytes(descriptor(["disk.vmdk"]))
        (made / "vm.mf").write_bytes(manifest({"disk.vmdk": (made / "disk.vmdk").read_bytes()}))
        run("tar", "-c", "-f", "vm.ova", "vm.ovf", "vm.mf", "disk.vmdk", cwd=made)
        outcome = Import(made / "vm.ova", tmp_path, Policy(engine="qemu")).gives("tar", kind="vmdk")
        assert outcome.path == "qemu-spool"
        assert "vm.mf" in outcome.verified_by

    def test_an_ova_with_several_disks(self, made, tmp_path):
        disk = (made / "disk.vmdk").read_bytes()
        (made / "second.vmdk").write_bytes(disk)
        (made / "vm.ovf").write_bytes(descriptor(["second.vmdk", "disk.vmdk"]))
        (made / "vm.mf").write_bytes(manifest({"second.vmdk": b"another", "disk.vmdk": disk}))
        run("tar", "-c", "-f", "vm.ova", "vm.ovf", "second.vmdk", "disk.vmdk", "vm.mf", cwd=made)
        Import(made / "vm.ova", tmp_path).refuses(
            "DiskNotInImage", "2 disks: 'second.vmdk', 'disk.vmdk'", "policy.disk"
        )
        chosen = Import(made / "vm.ova", tmp_path, Policy(disk="disk.vmdk")).gives("tar", kind="vmdk")
        assert "vm.mf" in chosen.verified_by
        Import(made / "vm.ova", tmp_path, Policy(disk="second.vmdk")).refuses("ChecksumMismatch", "vm.mf says sha256:")

    def test_a_disk_is_selected_in_something_else(self, made, tmp_path):
        refused = Import(made / "disk.qcow2", tmp_path, Policy(disk="disk.vmdk"))
        refused.refuses("DiskNotInImage", "the source is not an archive with disks")

    def test_two_files(self, made, tmp_path):
        run("tar", "-c", "-f", "t.tar", "disk.qcow2", "disk.raw", cwd=made)
        Import(made / "t.tar", tmp_path).refuses("DiskNotInImage", "'disk.qcow2' and 'disk.raw'", "t.tar")

    def test_no_file(self, made, tmp_path):
        (made / "empty").mkdir()
        run("tar", "-c", "-f", "t.tar", "empty", cwd=made)
        Import(made / "t.tar", tmp_path).refuses("DiskNotInImage", "the archive contains no disk file")


@pytest.mark.parametrize(("kind", "name"), [("qed", "QED"), ("parallels", "Parallels")])
@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_other_image_formats_are_to_be_converted(made, tmp_path, kind, name, wrap):
    path = made / "packed"
    path.write_bytes(wrap((made / f"disk.{kind}").read_bytes()))
    failure = Import(path, tmp_path).refuses("FormatUnsupported", name, "qemu-img convert -O qcow2")
    assert "unpack" not in failure.message
    run("qemu-img", "convert", "-O", "qcow2", f"disk.{kind}", "converted.qcow2", cwd=made)
    Import(made / "converted.qcow2", tmp_path).gives()


def test_other_archives_are_to_be_unpacked(made, tmp_path):
    (made / "x.7z").write_bytes(b"7z\xbc\xaf\x27\x1c\0\4" + bytes(600))
    Import(made / "x.7z", tmp_path).refuses("FormatUnsupported", "a 7-Zip archive", "unpack it")


@pytest.mark.parametrize(
    ("wrapper", "pack"), [("gz", gzip.compress), ("xz", lzma.compress), ("zst", zstd.compress)], ids=["gz", "xz", "zst"]
)
@pytest.mark.parametrize("junk", [b"\n", b"junk", b"x" * 5000])
def test_what_follows_a_compressed_stream_is_named(made, tmp_path, wrapper, pack, junk):
    path = made / "packed"
    packed = pack((made / "disk.qcow2").read_bytes())
    path.write_bytes(packed + junk)
    failure = Import(path, tmp_path).refuses("DecoderFailed", "data follows the end of the", "remove the data appended")
    assert "incomplete" not in failure.message
    path.write_bytes(packed)
    Import(path, tmp_path).gives(wrapper)


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_a_fixed_vhd_whose_footer_is_a_byte_short(made, tmp_path, wrap):
    options = ["-o", "subformat=fixed,force_size=on"]
    run("qemu-img", "convert", "-f", "raw", "-O", "vpc", *options, "disk.raw", "disk.vhd", cwd=made)
    path = made / "packed"
    path.write_bytes(wrap((made / "disk.vhd").read_bytes()[:-1]))
    Import(path, tmp_path).gives(*(("gz",) if wrap is gzip.compress else ()), kind="vpc")
