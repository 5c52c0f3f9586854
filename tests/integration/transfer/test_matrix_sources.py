"""Tests of every other source: each format plain, and one image in each compression; and the worker as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from cdi.api.job import (
    Credentials,
    FileSourceSpec,
    GcsSourceSpec,
    HttpSourceSpec,
    Outcome,
    Policy,
    RegistrySourceSpec,
    S3SourceSpec,
    StreamSourceSpec,
    Tls,
)
from tests.integration.fixtures_images import KINDS, REPRESENTATIVE, VOLUMES, WRAPPERS
from tests.integration.fixtures_registry import OciLayout
from tests.integration.transfer.paths import path_of

ROW = [(name, "plain") for name in REPRESENTATIVE] + [
    ("qcow2-zlib", wrapper) for wrapper in WRAPPERS if wrapper != "plain"
]
INSECURE = Tls(insecure=True)
VOLUME = {cell: ("file", "block512", "block4096")[n % 3] for n, cell in enumerate(ROW)}
"""The volume for each cell, in rotation."""


@pytest.fixture(params=ROW, ids="-".join)
def image(request, images):
    return images.get(*request.param)


@pytest.fixture
def volume(image, volumes):
    return volumes(VOLUME[image.name, image.wrapper])


def test_from_s3(image, volume, importing, s3, tmp_path):
    s3.put("dir/a disk", image.content)
    (tmp_path / "id").write_text("AKIA")
    (tmp_path / "key").write_text("secret")
    secret = Credentials(access_key_file=str(tmp_path / "id"), secret_key_file=str(tmp_path / "key"))
    outcome = importing(S3SourceSpec(url=s3.url("dir/a disk"), credentials=secret), volume, image)
    assert outcome.path == path_of(image, ranges=True)


def test_from_google_cloud_storage(image, volume, importing, gcs_standin):
    gcs_standin.put("images", "dir/a disk", image.content)
    source = GcsSourceSpec(url="gs://images/dir/a disk", endpoint=gcs_standin.origin)
    outcome = importing(source, volume, image)
    assert outcome.path == path_of(image, ranges=True)
    # The service provides a digest of everything that it stores.
    assert "gcs digest" in outcome.verified_by


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_from_a_registry(image, volume, importing, registries, oci_layout, compression):
    layers = [
        oci_layout.layer({"disk/": b"", "disk/any name": image.content}, compression),
        oci_layout.layer({"etc/hosts": b"a layer above, without a disk"}),
    ]
    oci_layout.image(layers, tag="t")
    name = f"matrix/{image.name}:{image.wrapper}-{compression}".lower()
    digest = registries.push(oci_layout, "t", name)
    outcome = importing(RegistrySourceSpec(url=registries.open.url(name), tls=INSECURE), volume, image)
    assert outcome.wrappers == ({"gzip": "gz", "zstd": "zst"}[compression], "tar", *image.wrappers)
    assert outcome.path == path_of(image, ranges=False)
    assert outcome.validator == digest
    assert "registry digest" in outcome.verified_by


def test_from_an_oci_archive(image, volume, importing, tmp_path):
    layout = OciLayout(tmp_path / "layout")
    layout.image([layout.layer({"disk/disk.img": image.content})], tag="t")
    archive = layout.archive(tmp_path / "image.tar")
    outcome = importing(RegistrySourceSpec(url=f"oci-archive:{archive}:t"), volume, image)
    assert outcome.wrappers == ("gz", "tar", *image.wrappers)
    assert outcome.path == path_of(image, ranges=False)


@contextmanager
def piped(content):
    """Return a pipe that `content` is written into."""
    reading, writing = os.pipe()

    def feed():
        with open(writing, "wb", buffering=0) as pipe:
            view = memoryview(content)
            while view:
                view = view[pipe.write(view[:100_001]) :]

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield reading
    finally:
        os.close(reading)
        thread.join()


@pytest.mark.parametrize("announced", [False, True], ids=["", "announced"])
def test_from_a_pipe(image, volume, importing, announced):
    with piped(image.content) as descriptor:
        length = len(image.content) if announced else None
        outcome = importing(StreamSourceSpec(descriptor=descriptor, length=length), volume, image)
    assert outcome.path == path_of(image, ranges=False)
    assert outcome.fetched == len(image.content)


def test_without_a_length(image, volume, importing, nginx):
    """The server sends chunks without knowing the length."""
    outcome = importing(HttpSourceSpec(url=nginx.url(image.serve(nginx.root), "chunked")), volume, image)
    assert outcome.path == path_of(image, ranges=False)


@pytest.mark.parametrize("way", ["", "plain"], ids=["ranges", "no-ranges"])
@pytest.mark.parametrize("volume_kind", ["file", "grown", "block4096"])
@pytest.mark.parametrize("name", KINDS)
def test_by_qemu_alone(name, volume_kind, way, images, volumes, importing, nginx):
    """The fallback engine gives the same disks."""
    image = images.get(name)
    policy = Policy(engine="qemu", discover_checksum=False)
    source = HttpSourceSpec(url=nginx.url(image.serve(nginx.root), way))
    outcome = importing(source, volumes(volume_kind), image, policy=policy)
    assert outcome.path == "qemu-spool"
    assert outcome.scratch == len(image.content)


@pytest.mark.parametrize("volume_kind", ["file", "grown", "block4096"])
@pytest.mark.parametrize("name", KINDS)
def test_a_local_file_by_qemu_alone(name, volume_kind, images, volumes, importing):
    """QEMU opens a local file itself, without a copy."""
    image = images.get(name)
    policy = Policy(engine="qemu", discover_checksum=False)
    checksum = f"sha256:{image.sha256}"
    source = FileSourceSpec(path=str(image.path))
    outcome = importing(source, volumes(volume_kind), image, policy=policy, checksum=checksum)
    assert (outcome.path, outcome.scratch, outcome.digest) == ("qemu-file", 0, checksum)


@pytest.mark.parametrize("way", ["", "plain"], ids=["ranges", "no-ranges"])
def test_with_a_checksum(image, volume, importing, nginx, way):
    source = HttpSourceSpec(url=nginx.url(image.serve(nginx.root), way))
    outcome = importing(source, volume, image, checksum=f"sha256:{image.sha256}")
    assert outcome.digest == f"sha256:{image.sha256}"
    assert "checksum" in outcome.verified_by


@pytest.mark.parametrize("volume_kind", VOLUMES)
@pytest.mark.parametrize("way", ["", "plain"], ids=["ranges", "no-ranges"])
@pytest.mark.parametrize("name", ["raw", "raw-odd", "qcow2-zlib", "qcow2-zeros", "vmdk-sparse"])
def test_preallocated(name, volume_kind, way, images, volumes, importing, nginx):
    image, volume = images.get(name), volumes(volume_kind)
    policy = Policy(preallocation=True, discover_checksum=False)
    source = HttpSourceSpec(url=nginx.url(image.serve(nginx.root), way))
    outcome = importing(source, volume, image, policy=policy, preallocated=True)
    assert outcome.preallocated
    if volume.device is None:
        assert volume.disk.stat().st_blocks * 512 >= volume.disk.stat().st_size // 4096 * 4096


# --- the worker -------------------------------------------------------------------------------------------------


def worker(job, status, *, stdin=subprocess.DEVNULL):
    status.mkdir()
    (status / "job.json").write_text(job.to_json())
    command = [sys.executable, "-m", "cdi.worker", "run", str(status / "job.json"), "--status-dir", str(status)]
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=60)
    outcome = Outcome.from_json((status / "outcome.json").read_text())
    assert done.returncode == (outcome.failure.exit_status if outcome.failure else 0), done.stderr
    return outcome


@pytest.mark.parametrize(
    ("name", "wrapper", "volume_kind"),
    [
        ("raw", "plain", "file"),
        ("qcow2-zlib", "plain", "file"),
        ("qcow2-zstd", "plain", "block512"),
        ("qcow2-v3", "xz", "block4096"),
        ("vmdk-stream", "plain", "block512"),
        ("vhdx", "gz", "file"),
        ("iso", "tar.gz", "block4096"),
    ],
)
@pytest.mark.parametrize("source", ["http", "file", "stdin"])
def test_by_a_worker_process(name, wrapper, volume_kind, source, images, volumes, importing, nginx, tmp_path):
    image, volume = images.get(name, wrapper), volumes(volume_kind)
    spec = {
        "http": lambda: HttpSourceSpec(url=nginx.url(image.serve(nginx.root))),
        "file": lambda: FileSourceSpec(path=str(image.path)),
        "stdin": StreamSourceSpec,
    }[source]()
    job = importing.job(spec, volume)
    with image.path.open("rb") as stdin:
        outcome = worker(job, tmp_path / "status", stdin=stdin)
    assert outcome.failure is None
    importing.check(outcome, job, volume, image)
    progress = json.loads((tmp_path / "status" / "progress.json").read_text())
    assert progress["phase"] == "done"
