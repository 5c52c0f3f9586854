"""Tests of contentType archive: a tar extracted into a directory, compared with GNU tar; hostile ones leave nothing."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import lzma
import os
import random
import stat
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from cdi.api.errors import Retry
from cdi.api.job import (
    BlockTargetSpec,
    Credentials,
    DirectoryTargetSpec,
    FileSourceSpec,
    FileTargetSpec,
    GcsSourceSpec,
    HttpSourceSpec,
    Job,
    Policy,
    RegistrySourceSpec,
    S3SourceSpec,
    StreamSourceSpec,
)
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.faults.server import Fault
from tests.integration.fixtures_images import run

MIB = 1 << 20
FORMATS = ["gnu", "pax", "ustar", "v7"]


@functools.cache
def packed(data, wrapper):
    if wrapper == "zst":
        return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout
    return {
        "tar": lambda: data,
        "gz": lambda: gzip.compress(data, 1, mtime=0),
        "xz": lambda: lzma.compress(data, preset=0),
    }[wrapper]()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree") / "root"
    dice = random.Random(2)
    (root / "a/b/c").mkdir(parents=True)
    (root / "empty directory").mkdir()
    (root / "a/data").write_bytes(dice.randbytes(3 * MIB + 7))
    (root / "a/b/empty").touch()
    (root / "a/b/c/text").write_text("text\n" * 1000)
    (root / "read only").write_text("x")
    (root / "read only").chmod(0o444)
    (root / "program").write_text("#!/bin/sh\n")
    (root / "program").chmod(0o755)
    (root / "a/b/link").symlink_to("c/text")
    (root / "a/b/up").symlink_to("../data")
    (root / "dangling").symlink_to("not/there")
    os.link(root / "a/b/c/text", root / "hard")
    with open(root / "sparse", "wb") as file:
        file.truncate(4 * MIB)
        file.seek(MIB)
        file.write(dice.randbytes(5000))
    (root / "closed").mkdir()
    (root / "closed/inside").write_text("y")
    (root / "closed").chmod(0o500)
    for path in sorted(root.rglob("*")):
        os.utime(path, (1_600_000_000, 1_600_000_000 + len(path.name)), follow_symlinks=False)
    return root


def archive_of(tree, kind):
    sparse = ["--sparse"] if kind in ("gnu", "pax") else []
    command = ["tar", "-C", str(tree), f"--format={kind}", "--owner=0", "--group=0", *sparse, "-cf", "-", "."]
    return subprocess.run(command, capture_output=True, check=True).stdout


def listing(root):
    """Return everything below a directory that an archive can store, by name."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder) / name
            status = path.lstat()
            entry = [stat.S_IFMT(status.st_mode)]
            if path.is_symlink():
                entry.append(os.readlink(path))
            else:
                entry += [stat.S_IMODE(status.st_mode), int(status.st_mtime)]
            if stat.S_ISREG(status.st_mode):
                entry += [hashlib.sha256(path.read_bytes()).hexdigest(), status.st_nlink]
            found[os.fsencode(path.relative_to(root))] = entry
    return found


@pytest.fixture
def volume(tmp_path):
    """Create a directory that is not empty, with a neighbour."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("victim")
    directory = tmp_path / "volume"
    directory.mkdir()
    (directory / "lost+found").mkdir()
    (directory / "kept").write_text("kept")
    return directory


def unpack(source, volume, **more):
    policy = more.pop("policy", Policy(discover_checksum=False, retries=2, stall_timeout=20))
    job = Job(
        id="t",
        source=source,
        target=DirectoryTargetSpec(path=str(volume)),
        content_type="archive",
        policy=policy,
        **more,
    )
    return transfer(job, TransferControl(job))


def expected(data, directory):
    """Return the tree that GNU tar extracts, together with the files that existed."""
    directory.mkdir()
    (directory / "lost+found").mkdir()
    (directory / "kept").write_text("kept")
    subprocess.run(["tar", "-C", str(directory), "--no-same-owner", "-xpf", "-"], input=data, check=True)
    return directory


def same_trees(left, right):
    one, other = listing(left), listing(right)
    for name in (b"kept", b"lost+found"):
        one.pop(name), other.pop(name)
    assert one == other


@pytest.mark.parametrize("wrapper", ["tar", "gz", "xz", "zst"])
@pytest.mark.parametrize("kind", FORMATS)
def test_it_unpacks_as_gnu_tar_does(kind, wrapper, tree, volume, tmp_path):
    data = archive_of(tree, kind)
    (tmp_path / "archive").write_bytes(packed(data, wrapper))
    outcome = unpack(FileSourceSpec(path=str(tmp_path / "archive")), volume)
    assert outcome.failure is None
    assert (outcome.format, outcome.path) == ("archive", "archive")
    assert outcome.wrappers == (("tar",) if wrapper == "tar" else (wrapper, "tar"))
    same_trees(volume, expected(data, tmp_path / "expected"))
    assert (volume / "kept").read_text() == "kept"
    # Holes in the archive stay holes.
    if kind in ("gnu", "pax"):
        assert (volume / "sparse").stat().st_blocks * 512 <= MIB


def test_names_that_are_long_or_no_text(volume, tmp_path):
    root = tmp_path / "names"
    deep = root / ("directory-" * 9 + "x") / ("more-" * 30)
    deep.mkdir(parents=True)
    (deep / ("n" * 200)).write_text("deep")
    (root / "ünïcode ∆").write_text("u")
    Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9")).write_text("l")
    (root / "line\nbreak").write_text("n")
    (root / "a link of a long way").symlink_to("/".join([deep.parent.name, "x" * 180]))
    for kind in ("gnu", "pax"):
        data = archive_of(root, kind)
        (tmp_path / "archive").write_bytes(data)
        assert unpack(FileSourceSpec(path=str(tmp_path / "archive")), volume).failure is None
        same_trees(volume, expected(data, tmp_path / kind))


@pytest.mark.parametrize("source", ["ranges", "plain", "chunked", "s3", "gcs", "pipe"])
@pytest.mark.parametrize("wrapper", ["tar", "gz", "xz", "zst"])
def test_from_every_source(source, wrapper, tree, volume, tmp_path, nginx, request):
    data = archive_of(tree, "pax")
    content = packed(data, wrapper)
    name = f"archive-{wrapper}"
    if source in ("ranges", "plain", "chunked"):
        nginx.put(name, content)
        spec = HttpSourceSpec(url=nginx.url(name, "" if source == "ranges" else source))
    elif source == "s3":
        s3 = request.getfixturevalue("s3")
        s3.put(name, content)
        (tmp_path / "id").write_text("AKIA")
        (tmp_path / "key").write_text("secret")
        secret = Credentials(access_key_file=str(tmp_path / "id"), secret_key_file=str(tmp_path / "key"))
        spec = S3SourceSpec(url=s3.url(name), credentials=secret)
    elif source == "gcs":
        gcs = request.getfixturevalue("gcs_standin")
        gcs.put("bucket", name, content)
        spec = GcsSourceSpec(url=f"gs://bucket/{name}", endpoint=gcs.origin)
    else:
        reading, writing = os.pipe()
        thread = threading.Thread(
            target=lambda: (Path(f"/proc/self/fd/{writing}").write_bytes(content), os.close(writing))
        )
        thread.start()
        spec = StreamSourceSpec(descriptor=reading)
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
    outcome = unpack(spec, volume, checksum=checksum)
    if source == "pipe":
        thread.join()
        os.close(reading)
    assert outcome.failure is None
    assert outcome.digest == checksum
    assert "checksum" in outcome.verified_by
    assert outcome.fetched >= len(content)
    same_trees(volume, expected(data, tmp_path / "expected"))


def test_members_replace_what_stood_there(volume, tmp_path):
    (volume / "etc").mkdir()
    (volume / "etc/old").write_text("of an earlier import")
    archive = made(member("etc/new", content=b"new"), member("kept", content=b"replaced"))
    (tmp_path / "archive").write_bytes(archive)
    assert unpack(FileSourceSpec(path=str(tmp_path / "archive")), volume).failure is None
    assert (volume / "kept").read_text() == "replaced"
    assert (volume / "etc/new").read_text() == "new"


# --- rejected archives ------------------------------------------------------------------------------------------


def member(name, *, kind=tarfile.REGTYPE, content=b"", link="", mode=0o644, pax=None):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, len(content), link, mode
    info.pax_headers = pax or {}
    return info, content


def made(*members, kind=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
GOOD = member("good", content=b"good" * 1000)
HOSTILE = {
    "absolute": ("ArchiveUnsafe", lambda out: made(GOOD, member(f"{out}/written", content=b"x"))),
    "climbs": ("ArchiveUnsafe", lambda out: made(GOOD, member("../outside/written", content=b"x"))),
    "climbs within": ("ArchiveUnsafe", lambda out: made(GOOD, member("a/b/../../../outside/written", content=b"x"))),
    "pax path": (
        "ArchiveUnsafe",
        lambda out: made(GOOD, member("n", content=b"x", pax={"path": "../outside/written"})),
    ),
    "gnu long name": (
        "ArchiveUnsafe",
        lambda out: made(GOOD, member("../outside/" + "w" * 150, content=b"x"), kind=tarfile.GNU_FORMAT),
    ),
    "absolute link": ("ArchiveUnsafe", lambda out: made(GOOD, member("l", kind=LINK, link=f"{out}/victim"))),
    "climbing link": ("ArchiveUnsafe", lambda out: made(GOOD, member("l", kind=LINK, link="../outside/victim"))),
    "through a link": (
        "ArchiveUnsafe",
        lambda out: made(GOOD, member("l", kind=LINK, link=str(out)), member("l/written", content=b"x")),
    ),
    "through a link that climbs": (
        "ArchiveUnsafe",
        lambda out: made(GOOD, member("l", kind=LINK, link="../outside"), member("l/written", content=b"x")),
    ),
    "through two links": (
        "ArchiveUnsafe",
        lambda out: made(
            GOOD,
            member("d", kind=tarfile.DIRTYPE, mode=0o755),
            member("d/one", kind=LINK, link="."),
            member("two", kind=LINK, link="d/one/../../outside"),
            member("two/written", content=b"x"),
        ),
    ),
    "link as directory": (
        "ArchiveUnsafe",
        lambda out: made(
            GOOD,
            member("d", kind=LINK, link=str(out)),
            member("d", kind=tarfile.DIRTYPE, mode=0o777),
            member("d/w", content=b"x"),
        ),
    ),
    "hard link outside": ("ArchiveUnsafe", lambda out: made(GOOD, member("h", kind=HARD, link="../outside/victim"))),
    "hard link absolute": ("ArchiveUnsafe", lambda out: made(GOOD, member("h", kind=HARD, link=f"{out}/victim"))),
    "hard link to what is not there": ("ArchiveUnsafe", lambda out: made(GOOD, member("h", kind=HARD, link="nothing"))),
    "hard link to what the volume has": ("ArchiveUnsafe", lambda out: made(GOOD, member("h", kind=HARD, link="kept"))),
    "character device": ("ArchiveUnsafe", lambda out: made(GOOD, member("null", kind=tarfile.CHRTYPE))),
    "block device": ("ArchiveUnsafe", lambda out: made(GOOD, member("sda", kind=tarfile.BLKTYPE))),
    "pipe": ("ArchiveUnsafe", lambda out: made(GOOD, member("pipe", kind=tarfile.FIFOTYPE))),
    "unknown kind": ("ArchiveUnsafe", lambda out: made(GOOD, member("x", kind=b"Z"))),
    "reserved name": ("ArchiveUnsafe", lambda out: made(GOOD, member(".cdi-unpack.partial/x", content=b"x"))),
    "very deep": ("ArchiveUnsafe", lambda out: made(GOOD, member("d/" * 400 + "x", content=b"x"))),
    "long component": ("ArchiveUnsafe", lambda out: made(GOOD, member("n" * 300, content=b"x"))),
    "cut": ("ContentTruncated", lambda out: made(GOOD, member("more", content=bytes(9000)))[:-12000]),
    "damaged header": ("ImageCorrupt", lambda out: made(GOOD)[:4608] + b"\x07garbage" * 64 + bytes(1024)),
    "large extended header": ("ImageUnsafe", lambda out: made(GOOD, member("n", pax={"comment": "x" * (2 << 20)}))),
}


@pytest.mark.parametrize("wrapper", ["tar", "gz"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_leaves_everything_as_it_was(name, wrapper, volume, tmp_path):
    code, build = HOSTILE[name]
    outside = tmp_path / "outside"
    (tmp_path / "archive").write_bytes(packed(build(outside), wrapper))
    before, beside = listing(volume), listing(outside)
    outcome = unpack(FileSourceSpec(path=str(tmp_path / "archive")), volume)
    assert outcome.failure is not None
    assert outcome.failure.code == code, outcome.failure
    assert outcome.failure.retry is Retry.NEVER
    assert listing(volume) == before
    assert listing(outside) == beside
    assert (outside / "victim").read_text() == "victim"


def test_a_link_of_an_earlier_life_is_not_followed(volume, tmp_path):
    (volume / "data").symlink_to(tmp_path / "outside")
    (tmp_path / "archive").write_bytes(made(member("data/written", content=b"x")))
    outcome = unpack(FileSourceSpec(path=str(tmp_path / "archive")), volume)
    assert os.listdir(tmp_path / "outside") == ["victim"]
    assert outcome.failure is None
    assert not (volume / "data").is_symlink()
    assert (volume / "data/written").read_text() == "x"


def test_rights_beyond_the_usual_are_dropped(volume, tmp_path):
    (tmp_path / "archive").write_bytes(made(member("suid", content=b"x", mode=0o6755)))
    assert unpack(FileSourceSpec(path=str(tmp_path / "archive")), volume).failure is None
    assert (volume / "suid").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("way", ["", "plain"], ids=["ranges", "no-ranges"])
def test_a_wrong_checksum_leaves_everything_as_it_was(way, tree, volume, nginx):
    nginx.put("archive", archive_of(tree, "pax"))
    before = listing(volume)
    outcome = unpack(HttpSourceSpec(url=nginx.url("archive", way)), volume, checksum=f"sha256:{'0' * 64}")
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.exit_status) == ("ChecksumMismatch", 5)
    assert listing(volume) == before


def test_a_disk_image_is_no_archive(volume, nginx):
    nginx.put("disk.img", b"\xeb\x63\x90" + bytes(100_000))
    before = listing(volume)
    outcome = unpack(HttpSourceSpec(url=nginx.url("disk.img")), volume)
    assert outcome.failure is not None
    assert outcome.failure.code == "FormatUnsupported"
    assert "contentType kubevirt" in outcome.failure.message
    assert listing(volume) == before


def test_an_archive_goes_into_no_disk(tree, tmp_path, nginx):
    nginx.put("archive", archive_of(tree, "pax"))
    for target in (FileTargetSpec(path=str(tmp_path / "disk.img")), BlockTargetSpec(path="/dev/null")):
        job = Job(id="t", source=HttpSourceSpec(url=nginx.url("archive")), target=target, content_type="archive")
        outcome = transfer(job, TransferControl(job))
        assert outcome.failure is not None
        assert outcome.failure.code == "TargetUnsuitable"
    assert os.listdir(tmp_path) == []


def test_a_container_image_is_no_archive(volume, tmp_path):
    outcome = unpack(RegistrySourceSpec(url=f"oci-archive:{tmp_path}/x.tar"), volume)
    assert outcome.failure is not None
    assert outcome.failure.code == "FormatUnsupported"


# --- faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
@pytest.mark.parametrize("wrapper", ["tar", "gz"])
def test_a_broken_connection_is_mended_or_begun_again(ranges, wrapper, tree, volume, tmp_path, fault_server):
    data = archive_of(tree, "pax")
    content = packed(data, wrapper)
    dice = random.Random(f"{ranges}{wrapper}")
    faults = [*(Fault(drop_after=dice.randrange(len(content) // 2)) for _ in range(2)), Fault(status=503)]
    if ranges:
        faults.insert(0, Fault())  # the response to the probe of one byte
    url = fault_server.put("/archive", content, faults=faults, ranges=ranges)
    outcome = unpack(HttpSourceSpec(url=url), volume, policy=Policy(discover_checksum=False, retries=5))
    assert outcome.failure is None
    assert len(fault_server.asked("/archive")) > 3
    same_trees(volume, expected(data, tmp_path / "expected"))


def test_a_full_volume_is_left_as_it_was(tree, tmp_path, nginx):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    nginx.put("archive", archive_of(tree, "ustar"))
    volume = tmp_path / "volume"
    volume.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(volume))
    try:
        (volume / "kept").write_text("kept")
        outcome = unpack(HttpSourceSpec(url=nginx.url("archive")), volume)
        assert outcome.failure is not None
        assert (outcome.failure.code, outcome.failure.retry) == ("TargetFull", Retry.ON_CHANGE)
        assert os.listdir(volume) == ["kept"]
    finally:
        run("umount", str(volume))
