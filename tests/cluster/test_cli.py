"""The commands on a cluster, as a person runs them; the tests do what a controller would do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster.kubectl import Kubectl
from tests.cluster.objects import claim, pod

ROOT = Path(__file__).parents[2]
TIMEOUT = 300
MOMENT = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class Cdi:
    """``cdi`` in one namespace of the cluster."""

    kubectl: Kubectl
    directory: Path

    def command(self, *arguments) -> list[str]:
        options = ["--kubeconfig", str(self.kubectl.kubeconfig), "-n", self.kubectl.namespace]
        return [sys.executable, "-m", "cdi.cli.main", *options, *map(str, arguments)]

    def start(self, *arguments) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env=self.environment,
        )

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: text for name, text in os.environ.items() if name != "CDI_HOME"}
        return {**kept, "COLUMNS": "200", "PYTHONPATH": str(ROOT)}

    def __call__(self, *arguments, status=0, given=None) -> subprocess.CompletedProcess:
        """Run a command, and assert its exit status and that it prints no traceback."""
        done = subprocess.run(
            self.command(*arguments),
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
            cwd=self.directory,
            env=self.environment,
        )
        said = f"{done.stdout}\n{done.stderr}"
        assert done.returncode == status, said
        assert "Traceback" not in said
        return done

    def apply(self, *documents) -> str:
        return self("apply", "-f", "-", given="---\n".join(map(json.dumps, documents))).stdout

    def set_status(self, name: str, **status) -> None:
        """Set the DataVolume's status as a controller does."""
        text = json.dumps({"status": status})
        self.kubectl.run("patch", "dv", name, "--subresource=status", "--type=merge", f"--patch={text}")


@pytest.fixture(scope="module", autouse=True)
def definitions(cluster):
    cluster.kubectl.run("apply", "--server-side", "--force-conflicts", f"--filename={ROOT / 'crds'}")
    cluster.kubectl.run("wait", "--for=condition=Established", "crd/datavolumes.cdi.kubevirt.io", "--timeout=150s")


@pytest.fixture
def cdi(namespace, tmp_path) -> Cdi:
    return Cdi(namespace, tmp_path)


def datavolume(name="golden", **more):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name, **more},
        "spec": {
            "source": {"http": {"url": "http://198.18.0.1:1/x.qcow2"}},
            "storage": {"resources": {"requests": {"storage": "64Mi"}}},
        },
    }


def condition(kind, status, reason, message=""):
    moment = {"lastTransitionTime": MOMENT, "lastHeartbeatTime": MOMENT}
    return {"type": kind, "status": status, "reason": reason, "message": message, **moment}


def failing(phase, code, message):
    return {
        "phase": phase,
        "conditions": [condition("Ready", "False", code, message), condition("Running", "False", "Error", message)],
    }


def worker(name, image, script):
    """Build a worker pod with what the commands read of it."""
    body = pod(name, image, script, labels={"app": "containerized-data-importer", "cdi.kubevirt.io": "importer"})
    body["spec"]["containers"][0]["name"] = "importer"
    return body


# --- Apply --------------------------------------------------------------------------------------------------------


def test_apply_creates_then_leaves_alone_then_changes(cdi):
    assert cdi.apply(datavolume()) == "datavolume/golden created\n"
    assert cdi.apply(datavolume()) == "datavolume/golden unchanged\n"
    assert cdi.apply(datavolume(labels={"app": "x"})) == "datavolume/golden configured\n"
    assert cdi.kubectl.get("dv", "golden")["metadata"]["labels"] == {"app": "x"}
    assert cdi.apply(datavolume()) == "datavolume/golden configured\n"
    assert "labels" not in cdi.kubectl.get("dv", "golden")["metadata"]


def test_apply_leaves_what_others_set(cdi):
    cdi.apply(datavolume(annotations={"mine": "1"}))
    cdi.kubectl.merge("dv", "golden", {"metadata": {"annotations": {"theirs": "1"}}})
    cdi.apply(datavolume())
    assert cdi.kubectl.get("dv", "golden")["metadata"]["annotations"] == {"theirs": "1"}


def test_a_dry_run_says_the_same_and_writes_nothing(cdi):
    text = json.dumps(datavolume())
    assert cdi("apply", "-f", "-", "--dry-run", given=text).stdout == "datavolume/golden created (dry run)\n"
    assert cdi("get", "dv", "-o", "name").stdout == ""
    cdi.apply(datavolume())
    assert cdi("apply", "-f", "-", "--dry-run", given=text).stdout == "datavolume/golden unchanged (dry run)\n"


def test_our_own_rules_come_before_the_servers(cdi):
    wrong = datavolume("two")
    wrong["spec"]["source"]["http"] = {"uri": "x"}
    done = cdi("apply", "-f", "-", given=f"{json.dumps(datavolume('one'))}\n---\n{json.dumps(wrong)}", status=2)
    assert "spec.source.http" in done.stderr
    assert "DataVolume two)" in done.stderr
    assert cdi("get", "dv", "-o", "name").stdout == ""


def test_a_spec_cannot_be_changed(cdi):
    cdi.apply(datavolume())
    other = datavolume()
    other["spec"]["source"]["http"]["url"] = "http://198.18.0.1:1/other.qcow2"
    done = cdi("apply", "-f", "-", given=json.dumps(other), status=2)
    assert "error[InvalidManifest]" in done.stderr


def test_kinds_that_only_a_cluster_has(cdi):
    source = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "VolumeImportSource",
        "metadata": {"name": "s"},
        "spec": {"source": {"http": {"url": "http://198.18.0.1:1/x"}}},
    }
    assert cdi.apply(source) == "volumeimportsource/s created\n"


# --- Get ----------------------------------------------------------------------------------------------------------


def test_get_shows_what_the_server_has(cdi):
    cdi.apply(datavolume())
    cdi.set_status("golden", phase="ImportInProgress", progress="45.30%", restartCount=1)
    header, row = cdi("get", "dv").stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "PROGRESS", "RESTARTS", "AGE"]
    assert row.split()[:4] == ["golden", "ImportInProgress", "45.30%", "1"]
    body = yaml.safe_load(cdi("get", "dv/golden", "-o", "yaml").stdout)
    assert body["metadata"]["uid"] == cdi.kubectl.get("dv", "golden")["metadata"]["uid"]
    assert "managedFields" not in body["metadata"]


def test_get_of_what_is_not_there(cdi):
    done = cdi("get", "dv", "nope", status=2)
    assert f"error[NotFound]: there is no datavolume {cdi.kubectl.namespace}/nope" in done.stderr
    assert cdi("get", "dv", "nope", "--ignore-not-found").stdout == ""


def test_get_goes_on_with_every_change(cdi):
    cdi.apply(datavolume("one"))
    with cdi.start("get", "dv", "-w", "-o", "name") as process:
        try:
            assert process.stdout.readline() == "datavolume/one\n"
            cdi.apply(datavolume("two"))
            assert process.stdout.readline() == "datavolume/two\n"
            cdi.set_status("one", phase="Pending")
            assert process.stdout.readline() == "datavolume/one\n"
        finally:
            process.terminate()


# --- Describe -----------------------------------------------------------------------------------------------------


def test_describe_shows_claim_worker_and_events(cdi, cluster):
    cdi.apply(datavolume())
    name = "importer-golden"
    body = claim("golden", "no-such-class")
    body["metadata"]["annotations"] = {"cdi.kubevirt.io/storage.import.importPodName": name}
    held = worker(name, "images.cdi.test/no-such-image:1", "true")
    cdi.kubectl.create(body, held)
    cdi.set_status("golden", **failing("ImportScheduled", "ImagePullFailed", "the image cannot be pulled"))
    uid = cdi.kubectl.get("dv", "golden")["metadata"]["uid"]
    cdi.kubectl.create(event(cdi.kubectl.namespace, uid, "ImportScheduled", "Import into golden scheduled"))
    cdi.kubectl.wait("pod", name, "held", lambda pod: bool(waiting(pod)) and waiting(pod) != "ContainerCreating")
    out = cdi("describe", "dv/golden").stdout
    assert "Class:        no-such-class" in out
    assert f"Pod:          {name}" in out
    assert "Held up:      failed to pull image: images.cdi.test/no-such-image:1, the worker's image" in out
    assert "Import into golden scheduled" in out
    assert "ImagePullFailed" in out


def waiting(pod):
    states = [each["state"] for each in pod["status"].get("containerStatuses", [])]
    return next((state["waiting"].get("reason", "") for state in states if "waiting" in state), "")


def event(space, uid, reason, message):
    about = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "name": "golden", "uid": uid}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "golden."},
        "involvedObject": {**about, "namespace": space},
        "type": "Normal",
        "reason": reason,
        "message": message,
        "firstTimestamp": MOMENT,
        "lastTimestamp": MOMENT,
        "count": 1,
    }


# --- Wait ---------------------------------------------------------------------------------------------------------


def test_wait_shows_progress_and_ends_with_success(cdi):
    cdi.apply(datavolume())
    with cdi.start("wait", "dv/golden") as process:
        assert process.stderr.readline() == "golden: Pending\n"
        cdi.set_status("golden", phase="ImportInProgress", progress="45.30%")
        assert process.stderr.readline() == "golden: ImportInProgress 45%\n"
        cdi.set_status("golden", phase="Succeeded", progress="100.0%")
        assert process.wait(TIMEOUT) == 0
        assert "golden: Succeeded" in process.stderr.read()


def test_wait_ends_with_the_failures_own_status(cdi):
    cdi.apply(datavolume())
    cdi.set_status("golden", **failing("Failed", "ChecksumMismatch", "the digest is another"))
    done = cdi("wait", "dv/golden", status=5)
    assert "error[ChecksumMismatch]: the digest is another" in done.stderr


def test_wait_ends_with_what_only_a_person_can_end(cdi):
    cdi.apply(datavolume())
    cdi.set_status("golden", **failing("ImportInProgress", "SourceUnauthorized", "a password is wanted"))
    assert "error[SourceUnauthorized]" in cdi("wait", "dv/golden", status=3).stderr
    done = cdi("wait", "dv/golden", "--patient", "--timeout", "1s", status=8)
    assert "error[WaitTimeout]" in done.stderr


def test_wait_says_why_it_stands_still(cdi):
    cdi.apply(datavolume())
    cdi.set_status(
        "golden",
        phase="Pending",
        conditions=[
            condition("Ready", "False", "NotFound", "there is no Secret s. Try: create it"),
            condition("Running", "False", "", ""),
        ],
    )
    done = cdi("wait", "dv/golden", "--timeout", "1s", status=8)
    assert "golden: Pending (there is no Secret s. Try: create it)" in done.stderr


def test_wait_until_it_is_gone(cdi):
    cdi.apply(datavolume())
    with cdi.start("wait", "dv/golden", "--for", "delete") as process:
        assert process.stderr.readline() == "golden: Terminating\n"
        cdi.kubectl.delete("dv", "golden")
        assert process.wait(TIMEOUT) == 0


# --- Delete -------------------------------------------------------------------------------------------------------


@pytest.fixture
def owned(cdi):
    """Create a DataVolume with a claim that it owns."""
    cdi.apply(datavolume())
    uid = cdi.kubectl.get("dv", "golden")["metadata"]["uid"]
    body = claim("golden", "csi")
    owner = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "name": "golden", "uid": uid}
    body["metadata"]["ownerReferences"] = [{**owner, "controller": True, "blockOwnerDeletion": True}]
    cdi.kubectl.create(body)
    cdi.kubectl.wait("pvc", "golden", "bound", lambda body: body["status"]["phase"] == "Bound")


@pytest.mark.usefixtures("owned")
def test_delete_returns_when_the_volume_is_gone_too(cdi):
    assert cdi("delete", "dv/golden").stdout == "datavolume/golden deleted\n"
    assert cdi.kubectl.get_all("pvc") == []
    assert "error[NotFound]" in cdi("delete", "dv/golden", status=2).stderr


@pytest.mark.usefixtures("owned")
def test_delete_can_leave_the_volume(cdi):
    cdi("delete", "dv/golden", "--keep-volume")
    assert cdi.kubectl.get_all("dv") == []
    kept = cdi.kubectl.wait("pvc", "golden", "its own", lambda body: not body["metadata"].get("ownerReferences"))
    assert kept["status"]["phase"] == "Bound"


# --- Logs ---------------------------------------------------------------------------------------------------------


def test_logs_of_the_worker_on_the_prime_claim(cdi, cluster):
    cdi.apply(datavolume())
    assert "there is no worker pod yet" in cdi("logs", "dv/golden", status=2).stderr
    prime, target = claim("prime-1", "csi-wait"), claim("golden", "csi-wait")
    prime["metadata"]["annotations"] = {"cdi.kubevirt.io/storage.import.importPodName": "importer-prime-1"}
    target["metadata"]["annotations"] = {"cdi.kubevirt.io/storage.populator.pvcPrime": "prime-1"}
    cdi.kubectl.create(prime, target, worker("importer-prime-1", cluster.image, "echo one; echo two"))
    cdi.kubectl.wait("pod", "importer-prime-1", "done", lambda body: body["status"]["phase"] == "Succeeded")
    assert cdi("logs", "dv/golden").stdout == "one\ntwo\n"


def test_logs_follow_one_pod_after_the_other(cdi, cluster):
    cdi.apply(datavolume())
    cdi.kubectl.create(claim("golden", "csi-wait"))
    with cdi.start("logs", "-f", "dv/golden") as process:
        for number in ("first", "second"):
            cdi.kubectl.create(worker("importer-golden", cluster.image, f"echo {number}; sleep 1; echo its end"))
            assert process.stdout.readline() == f"{number}\n"
            assert process.stdout.readline() == "its end\n"
            cdi.kubectl.delete("pod", "importer-golden")
        cdi.set_status("golden", phase="Succeeded")
        assert process.wait(TIMEOUT) == 0
        assert process.stdout.read() == ""


# --- Limit --------------------------------------------------------------------------------------------------------


def test_a_limit_reaches_the_running_worker_and_later_ones(cdi, cluster):
    cdi.apply(datavolume())
    cdi.kubectl.create(claim("golden", "csi-wait"), worker("importer-golden", cluster.image, "sleep 600"))
    cdi.kubectl.wait("pod", "importer-golden", "running", lambda body: body["status"]["phase"] == "Running")
    assert cdi("limit", "dv/golden", "--bandwidth", "5M").stdout == "datavolume/golden limited\n"
    cdi("limit", "dv/golden", "--connections", "2")
    notes = cdi.kubectl.get("dv", "golden")["metadata"]["annotations"]
    assert notes["cdi.kubevirt.io/policy.bandwidth"] == "5000000"
    assert notes["cdi.kubevirt.io/policy.connections"] == "2"
    told = cdi.kubectl.get("pod", "importer-golden")["metadata"]["annotations"]["cdi.kubevirt.io/limits"]
    assert json.loads(told) == {"bandwidth": 5_000_000, "connections": 2}


def test_a_limit_where_no_worker_runs_is_for_the_next(cdi):
    cdi.apply(datavolume())
    done = cdi("limit", "dv/golden", "--bandwidth", "5M")
    assert done.stdout == "datavolume/golden limited from its next attempt on; no worker is running\n"


# --- Import and version -------------------------------------------------------------------------------------------


def test_import_makes_a_datavolume_and_what_it_needs(cdi):
    (cdi.directory / "password").write_text("secret\n")
    arguments = ("http://198.18.0.1:1/x.qcow2", "--name", "golden", "--size", "64Mi", "--no-wait")
    login = ("--username", "me", "--password-file", "password")
    assert cdi("import", *arguments, *login).stdout == "datavolume/golden created\n"
    assert cdi("import", *arguments, *login).stdout == "datavolume/golden unchanged\n"
    made = cdi.kubectl.get("dv", "golden")
    assert made["spec"]["source"]["http"]["secretRef"] == "golden-import"
    owners = cdi.kubectl.get("secret", "golden-import")["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == [made["metadata"]["uid"]]
    done = cdi("import", *arguments[:3], "--size", "65Mi", "--no-wait", *login, status=2)
    assert "error[AlreadyExists]" in done.stderr


def test_a_key_ring_becomes_an_object_of_the_cluster(cdi):
    (cdi.directory / "keys.gpg").write_bytes(b"\x99keys")
    arguments = ("http://198.18.0.1:1/x.qcow2", "--name", "golden", "--size", "64Mi", "--no-wait")
    cdi("import", *arguments, "--keyring", "keys.gpg")
    notes = cdi.kubectl.get("dv", "golden")["metadata"]["annotations"]
    assert notes["cdi.kubevirt.io/policy.keyring"] == "golden-keyring/keyring.gpg"
    assert cdi.kubectl.get("configmap", "golden-keyring")["binaryData"] == {"keyring.gpg": "mWtleXM="}


def test_a_local_file_is_not_for_a_cluster(cdi):
    (cdi.directory / "x.raw").write_bytes(bytes(512))
    done = cdi("import", "x.raw", status=2)
    assert "error[UsageError]: a cluster cannot fetch it from this machine" in done.stderr


def test_the_servers_version_is_told(cdi):
    out = cdi("version").stdout
    assert "Kubernetes: v1." in out
    assert "cdi.kubevirt.io: v1beta1" in out


# --- Rejections by the server -------------------------------------------------------------------------------------


@pytest.fixture
def nobody(cdi, tmp_path):
    """Write a kubeconfig of a service account without any rights, and return its path."""
    token = cdi.kubectl.run("create", "token", "default").strip()
    config = yaml.safe_load(Path(cdi.kubectl.kubeconfig).read_text())
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    path = tmp_path / "nobody"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("arguments", [("get", "dv"), ("wait", "dv/x"), ("get", "dv", "-w")])
def test_who_may_not_is_told_what_is_missing(cdi, nobody, arguments):
    done = cdi(*arguments, "--kubeconfig", nobody, status=10)
    assert done.stderr.startswith("error[ClusterForbidden]: ")
    assert 'cannot list resource "datavolumes"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_who_is_not_known_is_told_so(cdi, nobody):
    config = yaml.safe_load(nobody.read_text())
    for user in config["users"]:
        user["user"]["token"] = "nonsense"  # noqa: S105
    nobody.write_text(yaml.safe_dump(config))
    done = cdi("get", "dv", "--kubeconfig", nobody, status=10)
    assert done.stderr.startswith("error[ClusterUnauthorized]: ")


def test_definitions_that_are_not_installed(cdi):
    """The message about an unknown kind must not suggest that the object's name is wrong."""
    config = yaml.safe_load(Path(cdi.kubectl.kubeconfig).read_text())
    for each in config["clusters"]:
        # No API is served below this path.
        each["cluster"]["server"] += "/apis/nothing.example.org"
    path = cdi.directory / "elsewhere"
    path.write_text(yaml.safe_dump(config))
    for arguments in (
        ("get", "dv", "x", "--ignore-not-found"),
        ("wait", "dv/x"),
        ("delete", "dv/x", "--ignore-not-found"),
    ):
        done = cdi(*arguments, "--kubeconfig", path, status=10)
        assert done.stderr.startswith("error[KindNotServed]: the API server does not serve this kind of object")
        assert "Try: install cdi in the cluster" in done.stderr
