"""Tests of every documented path, with curl, in every format."""

import subprocess

import pytest

from tests.integration.fixtures_images import SIZE
from tests.integration.upload.installation import same

DISK = -(-SIZE // (1 << 20)) * (1 << 20)
PLAIN = ("/v1beta1/upload", "/v1alpha1/upload", "/v1beta1/upload-async", "/v1alpha1/upload-async")
FORMS = ("/v1beta1/upload-form", "/v1alpha1/upload-form", "/v1beta1/upload-form-async", "/v1alpha1/upload-form-async")


@pytest.mark.parametrize("path", PLAIN)
def test_a_body_is_the_image(installation, images, path):
    image = images.get("qcow2-zlib")
    server = installation.start_server(size=DISK)
    answer = installation.curl(path, "-X", "POST", "-T", str(image.path))
    assert (answer.status, answer.body) == (200, "")
    outcome = server.outcome()
    assert outcome.failure is None
    assert outcome.path == "qcow2-stream"
    assert outcome.scratch == 0
    same(server.disk, image.path, "qcow2")


@pytest.mark.parametrize("path", FORMS)
def test_a_form_has_the_image_as_a_file(installation, images, path):
    image = images.get("raw")
    server = installation.start_server(size=DISK)
    answer = installation.curl(path, "-F", "note=before", "-F", f"file=@{image.path}", "-F", "more=after")
    assert (answer.status, answer.body) == (200, "")
    assert server.outcome().path == "raw-stream"
    same(server.disk, image.path, "raw")


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [
        ("raw", "plain"), ("raw", "gz"), ("raw", "zst"), ("qcow2-v3", "plain"), ("qcow2-v3", "xz"),
        ("qcow2-zlib", "gz"), ("qcow2-zstd", "plain"), ("vhd-fixed", "plain"), ("vdi", "plain"), ("vdi-static", "zst"),
        ("vhd-dynamic", "gz"), ("vhdx", "plain"), ("vhdx-fixed", "tar.gz"),
    ],
)  # fmt: skip
def test_no_scratch_is_used(installation, images, name, wrapper):
    image = images.get(name, wrapper)
    server = installation.start_server(size=DISK)
    assert installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path)).status == 200
    outcome = server.outcome()
    assert (outcome.scratch, outcome.wrappers, outcome.format) == (0, image.wrappers, image.kind.format)
    same(server.disk, image.path.with_name("image.plain"), image.kind.format)


@pytest.mark.parametrize("name", ["vmdk-2M", "vmdk-4M"])
def test_other_formats_go_through_scratch_space(installation, images, name):
    """Another server takes the upload over if there is no scratch space (`test_replaced`)."""
    image = images.get(name)
    server = installation.start_server(size=DISK, scratch=True)
    assert installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path)).status == 200
    outcome = server.outcome()
    assert (outcome.path, outcome.scratch) == ("qemu-spool", image.length)
    same(server.disk, image.path, image.kind.format)


def test_chunks_without_a_length(installation, images):
    image = images.get("qcow2-zlib")
    server = installation.start_server(size=DISK)
    answer = installation.curl(
        "/v1beta1/upload", "-X", "POST", "-H", "Transfer-Encoding: chunked", "-T", str(image.path)
    )
    assert answer.status == 200
    assert server.outcome().failure is None
    same(server.disk, image.path, "qcow2")


@pytest.mark.parametrize("form", [False, True])
def test_an_archive_is_unpacked(installation, tmp_path, form):
    (tmp_path / "content" / "below").mkdir(parents=True)
    (tmp_path / "content" / "below" / "file").write_text("hello")
    archive = tmp_path / "archive.tar"
    subprocess.run(["tar", "-C", str(tmp_path / "content"), "-cf", str(archive), "."], check=True)
    server = installation.start_server(archive=True)
    how = ("-F", f"file=@{archive}") if form else ("-X", "POST", "-T", str(archive))
    assert installation.curl("/v1beta1/upload-archive", *how).status == 200
    assert server.outcome().path == "archive"
    assert (server.directory / "below" / "file").read_text() == "hello"


def test_an_archive_is_not_for_a_disk(installation, tmp_path):
    server = installation.start_server(size=DISK)
    (tmp_path / "some").write_bytes(b"some bytes")
    answer = installation.curl("/v1beta1/upload-archive", "-X", "POST", "-T", str(tmp_path / "some"))
    assert answer.status == 400
    assert "archive" in answer.body
    assert server.process.poll() is None


@pytest.mark.parametrize(("name", "wrapper"), [("raw", "plain"), ("qcow2-v3", "plain"), ("raw", "gz")])
def test_the_end_of_a_form_behind_the_image_is_no_part_of_it(installation, images, tmp_path, name, wrapper):
    """Some programs send the rest of a form with the file, and the volume may be exactly as large as the image."""
    image = images.get(name, wrapper)
    sent = tmp_path / "sent"
    sent.write_bytes(image.content + b"\r\n--------------------------d74496d66958873e--\r\n")
    server = installation.start_server(size=len(image.disk))
    assert installation.curl("/v1alpha1/upload", "-X", "POST", "-T", str(sent)).status == 200
    outcome = server.outcome()
    assert (outcome.failure, outcome.disk_size) == (None, len(image.disk))
    assert server.disk.read_bytes() == image.disk


def test_a_fixed_vhd_fits_a_volume_of_its_disk(installation, images):
    """Its footer, which is recognised when all has arrived, is not part of the disk."""
    image = images.get("vhd-fixed")
    size = image.length - 512
    server = installation.start_server(size=size)
    assert installation.curl("/v1beta1/upload", "-X", "POST", "-T", str(image.path)).status == 200
    outcome = server.outcome()
    assert (outcome.failure, outcome.format, outcome.disk_size) == (None, "vpc", size)
    same(server.disk, image.path, "vpc")


def test_head_says_that_the_asynchronous_path_is_known(installation):
    installation.start_server(size=DISK)
    assert installation.curl("/v1beta1/upload-async", "-I").status == 200
    assert installation.curl("/v1alpha1/upload-async", "-I").status == 200
    assert installation.curl("/v1beta1/upload", "-I").status == 405


def test_health_needs_no_token(installation):
    answer = installation.curl("/healthz", token=None)
    assert (answer.status, answer.body) == (200, "OK")
