"""Imports into a real cluster from the command line (explain, import, batch), with a controller and workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from tests.cluster import cdi_image
from tests.cluster.cdi import controller
from tests.cluster.objects import claim, is_phase, pod
from tests.cluster.test_cli import ROOT, Cdi, datavolume, definitions  # noqa: F401  a fixture
from tests.cluster.volumes import IMMEDIATE, SLOW, digest, disk, qcow2, sha256, volume_mode, wait_phase
from tests.faults.server import FaultServer

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(cluster):
    with FaultServer(host=cluster.host_address) as server:
        yield server


@pytest.fixture(scope="module")
def content():
    return disk()


@pytest.fixture(scope="module")
def image(content, tmp_path_factory):
    return qcow2(content, tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def place(cluster):
    """Run a controller in a namespace for all tests of this module."""
    with cluster.namespace() as kubectl, controller(cluster, kubectl):
        # The profile of an unknown provisioner is learned from volumes in use. Other tests share the profile, so which
        # mode comes first depends on the tests that ran before.
        shown = {
            f"shown-{storage_class}": storage_class for storage_class in ("csi", "csi-wait", "local", "local-wait")
        }
        kubectl.create(
            *(claim(name, storage_class, mode="Block", size="16Mi") for name, storage_class in shown.items())
        )
        kubectl.create(pod("shown", cluster.image, "true", claims=dict.fromkeys(shown, "Block")))
        kubectl.wait("pod", "shown", "at its end", is_phase("Succeeded"), SLOW)
        yield kubectl


@pytest.fixture
def cdi(place, tmp_path):
    return Cdi(place, tmp_path)


def manifest(name, url, storage_class=None, **spec):
    body = datavolume(name)
    body["spec"]["source"] = {"http": {"url": url}}
    body["spec"]["storage"] |= {"resources": {"requests": {"storage": "24Mi"}}, **spec}
    if storage_class is not None:
        body["spec"]["storage"]["storageClassName"] = storage_class
    return body


def explained(cdi, *arguments, status=0, given=None):
    return json.loads(cdi("explain", *arguments, "-o", "json", given=given, status=status).stdout)


def imported(cluster, kubectl, name, size):
    """Return the sha256 of the first `size` bytes of an imported disk, whose volume may be of either mode."""
    return digest(cluster, kubectl, name, volume_mode(kubectl, name), size)


# --- Import -------------------------------------------------------------------------------------------------------


def test_an_image_is_imported_and_waited_for(cluster, cdi, server, image, content):
    url = server.put("/golden.qcow2", image)
    done = cdi("import", url, "--checksum", f"sha256:{sha256(image)}")
    assert done.stdout == "datavolume/golden created\n"
    assert "golden: Succeeded (qcow2" in done.stderr
    assert "verified by" in done.stderr
    assert cdi.kubectl.get("dv", "golden")["spec"]["storage"]["resources"]["requests"]["storage"] == "8Mi"
    assert imported(cluster, cdi.kubectl, "golden", len(content)) == sha256(content)
    said = cdi("describe", "dv/golden").stdout
    assert "Format:       qcow2" in said
    assert "ImportSucceeded" in said
    assert "It has succeeded." in cdi("explain", "dv/golden").stdout
    again = cdi("import", url, "--checksum", f"sha256:{sha256(image)}")
    assert again.stdout == "datavolume/golden unchanged\n"


def test_a_failure_ends_the_command_with_its_own_status(cdi, server, image):
    url = server.put("/bad.qcow2", image)
    done = cdi("import", url, "--checksum", f"sha256:{'0' * 64}", status=5)
    assert "error[ChecksumMismatch]" in done.stderr
    said = cdi("explain", "dv/bad", status=5)
    assert "It fails: " in said.stdout
    assert "[ChecksumMismatch]" in said.stdout


# --- Explain ------------------------------------------------------------------------------------------------------


def test_a_url_is_explained_before_anything_is_made(cdi, server, image):
    told = explained(cdi, server.put("/look.qcow2", image))
    assert told["refusal"] is None
    assert told["place"]["storage class"] == "csi (the default), provisioner csi.cdi.test"
    assert told["image"]["format"] == "qcow2"
    assert told["plan"]["path"] == "qcow2-ranged"
    assert any("from this machine" in note for note in told["notes"])
    assert "look" not in cdi("get", "dv", "-o", "name").stdout


@pytest.mark.parametrize(
    ("storage_class", "filled", "binding"),
    [
        ("csi", "through a temporary PVC of the same size (prime-UID)", "immediate"),
        ("csi-wait", "through a temporary PVC of the same size (prime-UID)", "waits for the first consumer"),
        ("local", "in place", "immediate"),
        ("local-wait", "in place", "waits for the first consumer"),
    ],
)
def test_how_a_class_would_be_used(cdi, server, image, storage_class, filled, binding):
    url = server.put("/class.qcow2", image)
    told = explained(cdi, "-f", "-", given=json.dumps(manifest("class", url, storage_class)))
    assert told["refusal"] is None
    assert told["place"]["filled"] == filled
    assert told["place"]["binding"] == binding
    assert told["plan"]["path"] == "qcow2-ranged"


def test_a_file_system_takes_its_part(cdi, server, image):
    url = server.put("/part.qcow2", image)
    body = manifest("part", url, "csi", volumeMode="Filesystem", accessModes=["ReadWriteOnce"])
    told = explained(cdi, "-f", "-", given=json.dumps(body))
    assert told["place"]["claim"] == "25.4 MiB (26675774 bytes), ReadWriteOnce, Filesystem"


def test_a_class_that_does_not_exist(cdi, server, image):
    body = manifest("nowhere", server.put("/nowhere.qcow2", image), "no-such-class")
    told = explained(cdi, "-f", "-", given=json.dumps(body), status=6)
    assert "no-such-class" in told["refusal"]["message"]


def test_a_secret_that_is_missing_and_one_that_comes_along(cdi, server, image):
    body = manifest("login", server.put("/login.qcow2", image))
    body["spec"]["source"]["http"]["secretRef"] = "nobodys"
    told = explained(cdi, "-f", "-", given=json.dumps(body), status=2)
    assert told["refusal"]["code"] == "NotFound"
    assert "nobodys" in told["refusal"]["message"]
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "nobodys"},
        "stringData": {"accessKeyId": "me", "secretKey": "x"},
    }
    both = "\n---\n".join(map(json.dumps, (body, secret)))
    assert explained(cdi, "-f", "-", given=both)["refusal"] is None


def test_a_quota_that_is_too_small_for_both_claims(cluster, server, image, tmp_path):
    with cluster.namespace() as kubectl:
        cdi = Cdi(kubectl, tmp_path)
        hard = {"requests.storage": "40Mi"}
        kubectl.create(
            {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": hard}}
        )
        kubectl.wait("resourcequota", "small", "known", lambda body: "hard" in body.get("status", {}))
        url = server.put("/quota.qcow2", image)
        told = explained(cdi, "-f", "-", given=json.dumps(manifest("quota", url, "csi")), status=6)
        assert told["refusal"]["code"] == "QuotaExceeded"
        assert "quota small limits requests.storage to 40Mi" in told["refusal"]["message"]
        assert explained(cdi, "-f", "-", given=json.dumps(manifest("quota", url, "local")))["refusal"] is None


def test_what_an_existing_one_waits_for(cdi, server, image):
    cdi.apply(manifest("consumer", server.put("/consumer.qcow2", image), "csi-wait"))
    wait_phase(cdi.kubectl, "consumer", "PendingPopulation")
    told = explained(cdi, "dv/consumer")
    assert told["phase"] == "PendingPopulation"
    assert told["waits"]["reason"] == "PendingPopulation"
    assert IMMEDIATE in told["waits"]["remedy"]


# --- Batch --------------------------------------------------------------------------------------------------------


def batch(cdi, *arguments, status=0):
    report = json.loads(cdi("batch", *arguments, "-o", "json", status=status).stdout)
    return {image["name"]: image for image in report["images"]}


def test_many_images_are_imported_and_pinned(cluster, cdi, server, image, content):
    images = [{"name": f"many-{number}", "url": server.put(f"/many-{number}.qcow2", image)} for number in range(3)]
    images[2]["storage"] = {"storageClassName": "csi-wait"}
    (cdi.directory / "images.yaml").write_text(json.dumps({"images": images}))
    found = batch(cdi, "images.yaml", "-j", "3")
    assert {name: one["result"] for name, one in found.items()} == dict.fromkeys(found, "imported")
    assert len(found) == 3
    pinned = json.loads((cdi.directory / "cdi.lock").read_text())["images"]
    assert {one["digest"] for one in pinned.values()} == {f"sha256:{sha256(image)}"}
    assert imported(cluster, cdi.kubectl, "many-2", len(content)) == sha256(content)
    found = batch(cdi, "images.yaml", "--locked")
    assert {name: one["result"] for name, one in found.items()} == dict.fromkeys(found, "unchanged")
    server.put("/many-0.qcow2", qcow2(disk(seed=9), cdi.directory), etag='"another"')
    found = batch(cdi, "images.yaml")
    assert found["many-0"]["result"] == "outdated"
    found = batch(cdi, "images.yaml", "--update")
    assert found["many-0"]["result"] == "imported"
    assert found["many-1"]["result"] == "unchanged"
    assert imported(cluster, cdi.kubectl, "many-0", len(content)) == sha256(disk(seed=9))


def test_a_batch_explains_what_failed(cdi, server, image):
    good, bad = server.put("/fine.qcow2", image), f"{server.url('/nothing.qcow2')}"
    images = [{"name": "fine", "url": good, "size": "24Mi"}, {"name": "nothing", "url": bad, "size": "24Mi"}]
    (cdi.directory / "images.yaml").write_text(json.dumps({"images": images}))
    found = batch(cdi, "images.yaml", "--keep-going", status=1)
    assert found["fine"]["result"] == "imported"
    assert found["nothing"]["error"]["code"] == "SourceNotFound"


def test_a_batch_of_local_files_is_not_for_a_cluster(cdi):
    (cdi.directory / "x.raw").write_bytes(bytes(MIB))
    (cdi.directory / "images.yaml").write_text(json.dumps({"images": [{"name": "x", "url": "x.raw"}]}))
    assert "a cluster cannot fetch" in cdi("batch", "images.yaml", status=2).stderr


def test_a_batch_runs_inside_the_cluster(cluster, place, server, image, content):
    images = [{"name": "inside-1", "url": server.put("/inside-1.qcow2", image)}]
    images.append({"name": "inside-2", "url": server.put("/inside-2.qcow2", image), "size": "24Mi"})
    documents = list(yaml.safe_load_all((ROOT / "examples" / "batch-job.yaml").read_text()))
    for body in documents:
        if body["kind"] == "ConfigMap":
            body["data"] = {"images.yaml": json.dumps({"images": images})}
        if body["kind"] == "Job":
            body["spec"]["template"]["spec"]["containers"][0]["image"] = cdi_image.provide(cluster)
    place.apply(*documents)

    def ended(job):
        return bool(job.get("status", {}).get("succeeded") or job.get("status", {}).get("failed"))

    job = place.wait("job", "golden-images", "ended", ended, SLOW)
    said = place.logs("job/golden-images")
    assert job["status"].get("succeeded") == 1, said
    assert said.count("imported") >= 2
    for one in images:
        assert imported(cluster, place, one["name"], len(content)) == sha256(content)


def test_as_a_plugin_of_kubectl(cdi):
    plugin = cdi.directory / "kubectl-cdi"
    plugin.write_text(f"#!{sys.executable}\nfrom cdi.cli.main import kubectl\n\nkubectl()\n")
    plugin.chmod(0o755)
    cdi.apply(datavolume("plugged"))
    environment = {
        **cdi.environment,
        "PATH": f"{cdi.directory}:{os.environ['PATH']}",
        "KUBECONFIG": str(cdi.kubectl.kubeconfig),
    }
    command = [cdi.kubectl.program, "cdi", "-n", cdi.kubectl.namespace, "get", "dv", "plugged", "-o", "name"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SLOW, check=False)
    assert (done.returncode, done.stdout) == (0, "datavolume/plugged\n"), done.stderr
