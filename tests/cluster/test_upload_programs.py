"""Foreign programs that upload: ``virtctl image-upload``, and the token request of openshift-python-wrapper."""

from __future__ import annotations

import json
import lzma
import tarfile

import pytest

from tests.cluster.layout import SOURCES
from tests.cluster.upload_api import TIMEOUT
from tests.cluster.upload_release import succeeded
from tests.cluster.volumes import MIB, SLOW, disk, qcow2, wait_phase

pytestmark = pytest.mark.timeout(TIMEOUT)
NEW = ("--size=24Mi", "--access-mode=ReadWriteOnce")


@pytest.fixture(scope="module")
def content():
    return disk()


@pytest.fixture(scope="module")
def image(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "disk.qcow2.xz"
    path.write_bytes(lzma.compress(qcow2(content, path.parent), preset=0))
    return path


def failed(process) -> str:
    """Return what a failing program said."""
    out, _ = process.communicate(timeout=2 * SLOW)
    assert process.returncode != 0, out
    return out


def test_new_claims_and_volumes_are_filled_and_not_filled_twice(uploads, virtctl, content, image):
    """The claim without a DataVolume, an existing claim, and classes that wait for a consumer."""
    uploads.volume("there", "local")
    uploads.ready("there")
    courses = {
        "claim": virtctl.upload(
            "claim", image, *NEW, "--storage-class=csi-wait", "--volume-mode=block", "--force-bind", noun="pvc"
        ),
        "bound": virtctl.upload(
            "bound", image, *NEW, "--storage-class=local-wait", "--volume-mode=filesystem", "--force-bind",
            "--datasource", "--default-instancetype=small",
        ),
        "there": virtctl.upload("there", image, "--no-create", noun="pvc"),
    }  # fmt: skip
    for process in courses.values():
        succeeded(process)
    uploads.hold_claims({"claim": "Block", "bound": "Filesystem", "there": "Filesystem"}, content)
    source = uploads.work.get("datasource", "bound")
    assert source["spec"]["source"]["pvc"]["name"] == "bound"
    label = "instancetype.kubevirt.io/default-instancetype"
    for kind in ("datavolume", "persistentvolumeclaim"):
        assert uploads.work.get(kind, "bound")["metadata"]["labels"][label] == "small"
    again = {
        "claim": virtctl.upload("claim", image, "--no-create", noun="pvc"),
        "bound": virtctl.upload("bound", image, "--no-create"),
    }
    for process in again.values():
        assert "already successfully" in failed(process)


@pytest.mark.parametrize(
    ("storage_class", "phase"), [("csi-wait", "PendingPopulation"), ("local-wait", "WaitForFirstConsumer")]
)
def test_a_volume_that_waits_for_its_consumer_is_refused_with_the_remedy(virtctl, image, storage_class, phase):
    process = virtctl.upload(f"waits-{storage_class}", image, *NEW, f"--storage-class={storage_class}")
    assert f"cannot upload to DataVolume in {phase} phase" in failed(process)


def test_an_archive_is_unpacked_into_a_new_volume(uploads, virtctl, tmp_path):
    (tmp_path / "motd").write_text("welcome")
    archive = tmp_path / "files.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "motd", arcname="etc/motd")
    succeeded(virtctl.upload("archive", archive, *NEW, "--storage-class=csi", option="--archive-path"))
    uploads.holds_file("archive", "etc/motd", "welcome")


def test_an_image_that_is_too_large_ends_the_retries_with_both_sizes(uploads, virtctl, tmp_path):
    image = tmp_path / "large.qcow2"
    image.write_bytes(qcow2(bytes(128 * MIB), tmp_path))
    said = failed(virtctl.upload("small", image, *NEW, "--storage-class=local", "--volume-mode=block", "--retry=2"))
    assert "after 2 retries: unexpected return value 400" in said
    assert "128" in said, said
    assert "24" in said, said
    # It still accepts an upload.
    wait_phase(uploads.work, "small", "UploadReady")


def test_the_wrapper_s_token_request_opens_an_upload(uploads, clients, content, tmp_path):
    image = tmp_path / "disk.raw"
    image.write_bytes(content)
    done = clients.run(str(SOURCES / "clients" / "wrapper.py"), "request_token", uploads.work.namespace)
    assert done.exit == 0, done.out + done.errors
    found = json.loads(done.out.splitlines()[-1])
    assert found["prime"]
    assert found["cleaned"]
    sent = uploads.curl("/v1beta1/upload", "--data-binary", f"@{image}", token=found["token"])
    assert sent.status == 200, sent
    uploads.hold({"wrapper": "Filesystem"}, content)
