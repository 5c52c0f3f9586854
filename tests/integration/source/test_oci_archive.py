"""Tests of OCI archives, written by skopeo and by hand."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile

import pytest

from cdi.api.errors import (
    ArchiveUnsafe,
    CdiError,
    ChecksumMismatch,
    ContentTruncated,
    DiskNotInImage,
    FormatUnrecognised,
    FormatUnsupported,
    Interrupted,
    NestedTooDeep,
    PlatformNotFound,
    SourceNotFound,
    SourceTruncated,
    SourceUrlInvalid,
)
from cdi.api.job import RegistrySourceSpec
from cdi.source.base import read_all
from cdi.source.registry.archive import split_archive
from cdi.source.registry.open import open_registry
from tests.integration.fixtures_registry import OciLayout, tar_of

DISK = bytes(range(256)) * 500


def opened(path, tag="", **more):
    return open_registry(RegistrySourceSpec(url=f"oci-archive:{path}{tag}", **more), 10)


@pytest.fixture
def archive(oci_layout, tmp_path):
    upper = oci_layout.layer({"disk/": b"", "disk/disk.img": DISK})
    oci_layout.image([oci_layout.layer({"a": b"b"}), upper], tag="one", env=["KUBEVIRT_IO_A=b"])
    return oci_layout.archive(tmp_path / "image.tar")


class TestReading:
    def test_layers_come_top_first_and_are_read_where_they_lie(self, archive):
        with opened(archive) as image:
            assert image.labels == {"kubevirt.io/a": "b"}
            top = image.layers[0]
            content = read_all(top.source, 1 << 20)
            assert hashlib.sha256(content).hexdigest() == top.digest.hex
            assert gzip.decompress(content) == tar_of({"disk/": b"", "disk/disk.img": DISK})
            facts = top.source.probe()
            assert (facts.length, facts.ranges, facts.digests) == (top.size, True, (top.digest,))
            buffer = memoryview(bytearray(100))
            reader = top.source.open(7, 20)
            assert reader.readinto(buffer) == 20
            assert (bytes(buffer[:20]), reader.readinto(buffer)) == (content[7:27], 0)

    def test_what_skopeo_writes(self, archive, tmp_path):
        written = tmp_path / "skopeo.tar"
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{archive}:one", f"oci-archive:{written}:named"],
            check=True, timeout=60,
        )  # fmt: skip
        with opened(written, ":named", architecture="amd64") as image, opened(archive) as original:
            assert image.layers[0].digest == original.layers[0].digest
            assert len(read_all(image.layers[0].source, 1 << 20)) == image.layers[0].size

    @pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    @pytest.mark.parametrize("prefix", ["", "./"])
    def test_every_form_of_tar(self, oci_layout, tmp_path, form, prefix):
        oci_layout.image([oci_layout.layer({"disk/x": DISK})], tag="t")
        path = tmp_path / "x.tar"
        with tarfile.open(
            path, "w", format=form, pax_headers={"comment": "ü" * 300} if form == tarfile.PAX_FORMAT else None
        ) as tar:
            for file in sorted(oci_layout.path.rglob("*")):
                info = tar.gettarinfo(str(file), prefix + str(file.relative_to(oci_layout.path)))
                info.mtime = 1.5
                tar.addfile(info, io.BytesIO(file.read_bytes()) if file.is_file() else None)
        with opened(path) as image:
            assert len(read_all(image.layers[0].source, 1 << 20)) == image.layers[0].size

    def test_the_platform_is_chosen(self, oci_layout, tmp_path):
        entries = [
            oci_layout.image([oci_layout.layer({"disk/x": name.encode()})], architecture=name)
            for name in ("amd64", "arm64")
        ]
        index = oci_layout.index(entries, tag="t")
        path = oci_layout.archive(tmp_path / "x.tar")
        with opened(path, architecture="arm64") as image:
            assert (str(image.digest), str(image.image.manifest_digest)) == (index["digest"], entries[1]["digest"])
        with pytest.raises(PlatformNotFound, match="linux/amd64, linux/arm64"):
            opened(path, architecture="s390x")

    def test_tags_tell_images_apart(self, oci_layout, tmp_path):
        one = oci_layout.image([oci_layout.layer({"disk/x": b"1"})], tag="one")
        oci_layout.image([oci_layout.layer({"disk/x": b"2"})], tag="two")
        path = oci_layout.archive(tmp_path / "x.tar")
        with opened(path, ":one") as image:
            assert str(image.digest) == one["digest"]
        with pytest.raises(SourceUrlInvalid, match="one, two"):
            opened(path)
        with pytest.raises(SourceNotFound, match="it has one, two"):
            opened(path, ":three")


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("oci-archive:/a/b.tar", ("/a/b.tar", None)),
            ("oci-archive:///a/b.tar", ("/a/b.tar", None)),
            ("oci-archive://a/b.tar", ("/a/b.tar", None)),
            ("oci-archive:/a/b.tar:tag", ("/a/b.tar", "tag")),
            ("oci-archive:/a:b/c.tar", ("/a:b/c.tar", None)),
            ("oci-archive:rel.tar:x", ("rel.tar", "x")),
        ],
    )
    def test_path_and_tag(self, url, expected):
        assert split_archive(url) == expected

    def test_a_colon_in_the_name_of_a_file(self, archive):
        odd = archive.with_name("image:v1.tar")
        archive.rename(odd)
        opened(odd).close()

    @pytest.mark.parametrize(
        "url", ["oci-archive:", "oci-archive://", "docker-archive:/x.tar", "oci:/x", "dir:/x", "/x"]
    )
    def test_other_places_are_refused(self, url):
        with pytest.raises(SourceUrlInvalid):
            open_registry(RegistrySourceSpec(url=url), 10)


class TestDirectories:
    def test_a_layout_in_a_directory_is_read_like_one_in_a_tar(self, oci_layout):
        upper = oci_layout.layer({"disk/": b"", "disk/disk.img": DISK})
        oci_layout.image([oci_layout.layer({"a": b"b"}), upper], tag="one")
        with opened(oci_layout.path, ":one") as image:
            content = read_all(image.layers[0].source, 1 << 20)
            assert gzip.decompress(content) == tar_of({"disk/": b"", "disk/disk.img": DISK})
            assert read_all(image.layers[1].source, 1 << 20)


class TestRefusals:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(SourceNotFound):
            opened(tmp_path / "none.tar")

    def test_a_manifest_that_does_not_match_its_digest(self, oci_layout, tmp_path):
        entry = oci_layout.image([oci_layout.layer({"disk/disk.img": DISK})], tag="one")
        path = oci_layout.path / "blobs/sha256" / entry["digest"].partition(":")[2]
        body = path.read_bytes()
        path.write_bytes(body.replace(b'"schemaVersion": 2', b'"schemaVersion":2 '))
        assert len(path.read_bytes()) == len(body)
        for place in (oci_layout.archive(tmp_path / "image.tar"), oci_layout.path):
            with pytest.raises(ChecksumMismatch):
                opened(place, ":one")

    def test_pipes_and_directories_without_a_layout(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FormatUnsupported, match="regular"):
            opened(tmp_path / "pipe")
        with pytest.raises(FormatUnsupported, match="not an OCI image layout"):
            opened(tmp_path)

    @pytest.mark.parametrize("tool", [["gzip"], ["xz"], ["zstd", "-q"], ["bzip2"]])
    def test_a_compressed_archive(self, archive, tool):
        packed = archive.with_name("packed")
        with archive.open("rb") as source, packed.open("wb") as target:
            subprocess.run([*tool, "-c"], stdin=source, stdout=target, check=True)
        with pytest.raises(FormatUnsupported, match="compressed with"):
            opened(packed)

    def test_a_docker_archive(self, tmp_path):
        (tmp_path / "x.tar").write_bytes(tar_of({"manifest.json": b"[]"}))
        with pytest.raises(FormatUnsupported, match="docker-archive"):
            opened(tmp_path / "x.tar")

    @pytest.mark.parametrize("content", [b"", b"short", b"x" * 5000])
    def test_no_archive_at_all(self, tmp_path, content):
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(FormatUnrecognised):
            opened(tmp_path / "x.tar")

    def test_an_empty_archive(self, tmp_path):
        (tmp_path / "x.tar").write_bytes(bytes(10240))
        with pytest.raises(FormatUnsupported):
            opened(tmp_path / "x.tar")

    def test_a_blob_that_is_missing(self, oci_layout, tmp_path):
        layer = oci_layout.layer({"disk/x": DISK})
        oci_layout.image([layer], tag="t")
        (oci_layout.path / "blobs/sha256" / layer["digest"].removeprefix("sha256:")).unlink()
        with pytest.raises(SourceNotFound, match="lacks the blob"):
            opened(oci_layout.archive(tmp_path / "x.tar"))

    def test_blobs_that_are_not_what_was_promised(self, oci_layout, tmp_path):
        layer = oci_layout.layer({"disk/x": DISK})
        entry = oci_layout.image([layer], tag="t")
        blobs = oci_layout.path / "blobs/sha256"
        (blobs / layer["digest"].removeprefix("sha256:")).write_bytes(b"short")
        with pytest.raises(ChecksumMismatch, match="is listed"):
            opened(oci_layout.archive(tmp_path / "a.tar"))
        manifest = blobs / entry["digest"].removeprefix("sha256:")
        manifest.write_bytes(manifest.read_bytes().replace(b'"schemaVersion": 2', b'"schemaVersion": 3'))
        with pytest.raises(ChecksumMismatch):
            opened(oci_layout.archive(tmp_path / "b.tar"))

    def test_a_file_that_shrinks_under_its_reader(self, archive):
        with opened(archive) as image:
            os.truncate(archive, 600)
            with pytest.raises(SourceTruncated):
                read_all(image.layers[0].source, 1 << 20)

    def test_an_image_without_layers(self, oci_layout, tmp_path):
        oci_layout.image([], tag="t")
        with pytest.raises(DiskNotInImage):
            opened(oci_layout.archive(tmp_path / "x.tar"))

    def test_an_interrupted_reader(self, archive):
        with opened(archive) as image:
            reader = image.layers[0].source.open()
            reader.abort()
            with pytest.raises(Interrupted):
                reader.readinto(memoryview(bytearray(10)))


class TestHostileTar:
    def write(self, tmp_path, *parts):
        path = tmp_path / "hostile.tar"
        path.write_bytes(b"".join(parts) + bytes(1024))
        return path

    def header(self, name, size, kind=b"0"):
        info = tarfile.TarInfo(name)
        info.size = size
        info.type = kind
        return info.tobuf(tarfile.GNU_FORMAT)

    def test_a_member_longer_than_the_file(self, tmp_path):
        with pytest.raises(ContentTruncated):
            opened(self.write(tmp_path, self.header("index.json", 1 << 40)))

    @pytest.mark.parametrize("kind", [b"x", b"L"])
    def test_an_extended_header_that_is_too_long_to_hold(self, tmp_path, kind):
        path = self.write(tmp_path, self.header("x", 2 << 30, kind))
        os.truncate(path, 3 << 30)  # sparse: takes no space
        with pytest.raises(ArchiveUnsafe, match="too long"):
            opened(path)

    @pytest.mark.parametrize(
        "content", [b"9 path=a\n", b"0 a=b\n", b"x", b"99999999 a=b\n", b"13 size=-5\n\n", b"12 size=1e3\n"]
    )
    def test_a_pax_header_that_cannot_be_read(self, tmp_path, content):
        parts = (self.header("x", len(content), b"x"), content.ljust(512, b"\0"), self.header("y", 0))
        with pytest.raises(CdiError):
            opened(self.write(tmp_path, *parts))

    def test_two_members_of_one_name(self, oci_layout, tmp_path):
        content = tar_of({"index.json": b"{}"})[:1024]
        with pytest.raises(ArchiveUnsafe, match="twice"):
            opened(self.write(tmp_path, content, content))

    def test_a_damaged_header_further_on(self, tmp_path):
        with pytest.raises(ArchiveUnsafe, match="damaged"):
            opened(self.write(tmp_path, tar_of({"a": b"b"})[:1024], b"x" * 512))

    def test_more_members_than_anybody_needs(self, tmp_path):
        with pytest.raises(NestedTooDeep):
            opened(self.write(tmp_path, self.header("a", 0, b"5") * 20_001))

    def test_links_do_not_stand_for_files(self, oci_layout, tmp_path):
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w") as tar:
            for name in ("oci-layout", "index.json"):
                info = tarfile.TarInfo(name)
                info.type = tarfile.SYMTYPE
                info.linkname = "/etc/passwd"
                tar.addfile(info)
        with pytest.raises(FormatUnsupported):
            opened(path)

    def test_an_index_of_another_kind(self, tmp_path):
        for body in (b"[]", b"{}", json.dumps({"layers": [], "config": {}}).encode(), b"\xff", bytes(5 << 20)):
            path = tmp_path / "x.tar"
            path.write_bytes(tar_of({"oci-layout": b"{}", "index.json": body}))
            with pytest.raises(CdiError):
                opened(path)

    def test_damage_anywhere_ends_in_an_error_of_ours(self, tmp_path):
        import random

        layout = OciLayout(tmp_path / "l")
        layout.image([layout.layer({"disk/x": b"y"})], tag="t")
        whole = layout.archive(tmp_path / "x.tar").read_bytes()
        chance = random.Random(1)
        for _ in range(200):
            damaged = bytearray(whole)
            for _ in range(chance.randrange(1, 5)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            (tmp_path / "x.tar").write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])])
            try:
                opened(tmp_path / "x.tar").close()
            except CdiError:
                pass
