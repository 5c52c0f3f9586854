"""Tests that ``cdi explain`` of a DataImportCron asks the real source and predicts the import, and writes nothing."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess

import pytest

MIB = 1 << 20
CRON = """
apiVersion: cdi.kubevirt.io/v1beta1
kind: DataImportCron
metadata: {{name: guest, annotations: {annotations}}}
spec:
  schedule: "{schedule}"
  managedDataSource: guest
  template:
    spec:
      source: {source}
      storage: {{resources: {{requests: {{storage: {size}}}}}}}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    directory = tmp_path_factory.mktemp("image")
    (directory / "guest.raw").write_bytes(random.Random(5).randbytes(2 * MIB) + bytes(6 * MIB))
    convert = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "guest.raw", "guest.qcow2"]
    subprocess.run(convert, cwd=directory, check=True)
    return (directory / "guest.qcow2").read_bytes()


@pytest.fixture
def manifest(tmp_path):
    def write(url, *, schedule="0 3 * * *", size="8Mi", annotations=None, **source):
        kind = {"http": {"url": url, **source}}
        text = CRON.format(
            source=json.dumps(kind), schedule=schedule, size=size, annotations=json.dumps(annotations or {})
        )
        (tmp_path / "cron.yaml").write_text(text)
        return "cron.yaml"

    return write


def told(cdi, *arguments, status=0):
    return json.loads(cdi("explain", *arguments, "-o", "json", status=status).stdout)


def test_the_answer_of_the_source_the_times_and_the_cost(cdi, nginx, image, manifest):
    digest = hashlib.sha256(image).hexdigest()
    nginx.put("cron/guest.qcow2", image)
    nginx.put("cron/SHA256SUMS", f"{digest}  guest.qcow2\n".encode())
    file = manifest(nginx.url("cron/guest.qcow2"), annotations={"cdi.kubevirt.io/golden.proof": "boot"})
    text = cdi("explain", "-f", file).stdout
    assert "golden image:" in text
    assert f"sha256:{digest} (checksum file)" in text
    assert f"guest-{digest[:12]} would be imported" in text
    assert "boot proof:" in text
    assert text.rstrip().endswith("It would work.")
    shown = told(cdi, "-f", file)
    assert len(shown["cron"]["nextPolls"]) == 3
    assert shown["cron"]["poll"]["digest"] == f"sha256:{digest}"
    assert shown["plan"]["diskSize"] == 8 * MIB
    assert not list(cdi.home.glob("objects/dataimportcrons/*/*"))


def test_a_known_version_is_said_to_be_known(cdi, nginx, image, manifest):
    digest = hashlib.sha256(image).hexdigest()
    nginx.put("known/guest.qcow2", image)
    nginx.put("known/SHA256SUMS", f"{digest}  guest.qcow2\n".encode())
    desired = {"cdi.kubevirt.io/storage.import.sourceDesiredDigest": f"sha256:{digest}"}
    cdi("apply", "-f", manifest(nginx.url("known/guest.qcow2"), schedule="", annotations=desired))
    text = cdi("explain", "dic/guest").stdout
    assert f"guest-{digest[:12]} is known, nothing would be imported" in text
    assert "none: it is never polled" in text


def test_a_source_that_does_not_identify_its_content_is_refused_with_the_remedy(cdi, nginx, image, manifest):
    nginx.put("weak/guest.qcow2.gz", image)
    done = cdi("explain", "-f", manifest(nginx.url("weak/guest.qcow2", "gzipped")), status=3)
    assert "It would fail" in done.stdout


def test_a_missing_secret_is_what_it_would_wait_for(cdi, nginx, image, manifest):
    nginx.put("cron/guest.qcow2", image)
    done = cdi("explain", "-f", manifest(nginx.url("cron/guest.qcow2", "private"), secretRef="absent"), status=2)
    assert "absent" in done.stdout
    assert "It would wait" in done.stdout


def test_a_volume_that_is_too_small_is_refused(cdi, nginx, image, manifest):
    nginx.put("cron/guest.qcow2", image)
    done = cdi("explain", "-f", manifest(nginx.url("cron/guest.qcow2"), size="4Mi"), status=6)
    assert "TargetTooSmall" in done.stderr


def test_an_unknown_image_is_named(cdi):
    assert "there is no dataimportcron default/nothing" in cdi("explain", "dic/nothing", status=2).stderr
