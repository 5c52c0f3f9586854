"""`cdi apiserver` with a real API server: webhook calls, trust, rotation under load, and its absence."""

import base64
import contextlib
import copy
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
import yaml

from cdi.api.kinds import KINDS
from tests.cluster.kubectl import KubectlError
from tests.cluster.test_crds import WEBHOOK_ONLY, definitions  # noqa: F401  a fixture
from tests.unit.api import test_validation_datavolume as datavolumes
from tests.unit.api.consumers import CONSUMERS
from tests.unit.api.manifests import dv, obj, sound, spoilt
from tests.unit.server.reviews import body, hook_of

TIMEOUT = 240.0
SERVER_CERT, SIGNER, WAY = "cdi-apiserver-server-cert", "cdi-apiserver-signer", "cdi-apiserver-webhook-path"
SETTLES = 240.0  # seconds for a new path, which is published two minutes after its creation


def free_port():
    with socket.create_server(("", 0)) as listener:
        return listener.getsockname()[1]


def until(what, ready, patience=TIMEOUT):
    deadline = time.monotonic() + patience
    while not (found := ready()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


class Server:
    """One process, reached at this machine's address."""

    def __init__(self, cluster, kubectl, port, log, *more):
        self.kubectl, self.port, self.address = kubectl, port, cluster.host_address
        self.log, self.documents = log, []
        command = [sys.executable, "-m", "cdi.cli.main", "apiserver", "-n", kubectl.namespace, f"--port={port}",
                   f"--host={self.address}", "--log-level=debug", *more]  # fmt: skip
        environment = {**os.environ, **kubectl.environment, "KUBECONFIG": str(kubectl.kubeconfig)}
        command.append(f"--webhook-prefix={kubectl.namespace}")
        with log.open("w") as errors:
            self.process = subprocess.Popen(command, stderr=errors, env=environment)

    def bundle(self):
        try:
            return self.kubectl.get("configmap", f"{SIGNER}-bundle")["data"]["ca-bundle.crt"]
        except KubectlError:
            return ""

    def fetch(self, path, data=None, *, trust=True):
        """Return status and body; 0 if the server does not answer or its certificate is not trusted."""
        context = (
            ssl.create_default_context(cadata=self.bundle() or None) if trust else ssl._create_unverified_context()
        )
        request = urllib.request.Request(
            f"https://{self.address}:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
            )
            with opener.open(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self):
        assert self.process.poll() is None, self.log.read_text()
        return self.fetch("/readyz")[0] == 200

    def shown(self):
        """Return the certificate that it serves."""
        return ssl.get_server_certificate((self.address, self.port))

    def words(self):
        """Return the secret first segments of webhook paths, newest first."""
        kept = self.kubectl.get("secret", WAY)["data"]["paths.json"]
        return [each["word"] for each in json.loads(base64.b64decode(kept))["words"]]

    def ask(self, document, **request):
        operation = request.get("operation", "CREATE")
        hook = hook_of(document or request["old"], operation)
        status, text = self.fetch(f"/{self.words()[0]}{hook.path}", body(document, **request))
        assert status == 200, text
        return json.loads(text)["response"]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT)


@contextlib.contextmanager
def webhooks(kubectl, address, port):
    """Install the webhook configurations for objects of this namespace, and for objects labelled with its name."""
    arguments = ["-n", kubectl.namespace, f"--webhook-prefix={kubectl.namespace}", f"--url=https://{address}:{port}",
                 f"--watch-namespaces={kubectl.namespace}", f"--selector=cdi-test={kubectl.namespace}", "--print-webhooks"]  # fmt: skip
    printed = subprocess.run(
        [sys.executable, "-m", "cdi.cli.main", "apiserver", *arguments], capture_output=True, text=True, check=True
    )
    documents = list(yaml.safe_load_all(printed.stdout))
    try:
        kubectl.apply(*documents)
        yield documents
    finally:
        for document in documents:
            kubectl.delete(document["kind"], document["metadata"]["name"], wait=False)


def client_of(kubectl, document):
    """Return the webhook's clientConfig."""
    return kubectl.get(document["kind"], document["metadata"]["name"])["webhooks"][0]["clientConfig"]


def trusted(kubectl, documents, bundle):
    return all("caBundle" in client_of(kubectl, each) for each in documents) and bool(bundle())


@pytest.fixture(scope="module")
def server(cluster, definitions, tmp_path_factory):  # noqa: F811
    with cluster.namespace("e-admission") as kubectl:
        port = free_port()
        with webhooks(kubectl, cluster.host_address, port) as documents:
            running = Server(cluster, kubectl, port, tmp_path_factory.mktemp("apiserver") / "log")
            try:
                until("it is ready", running.ready)
                until("it is trusted", lambda: trusted(kubectl, documents, running.bundle))
                running.documents = documents
                # The API server needs a moment to see a webhook; only this webhook rejects the object.
                until("it is asked", lambda: asked(running))
                yield running
            finally:
                running.process.kill()
                running.process.wait()


def asked(running):
    try:
        create(running, next(document for name, document, *_ in datavolumes.REFUSED if name == "header without colon"))
    except KubectlError:
        return True
    return False


def create(running, document, *, dry_run=True, name=None):
    kind = next(kind for kind in KINDS if kind.kind == document["kind"])
    place = f"/namespaces/{running.kubectl.namespace}" if kind.namespaced else ""
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else "/api/v1"
    made = copy.deepcopy(document)
    made["metadata"].pop("namespace", None)
    made["metadata"].setdefault("labels", {})["cdi-test"] = running.kubectl.namespace
    if name:
        made["metadata"]["name"] = name
    path = f"{root}{place}/{kind.plural}" + ("?dryRun=All" if dry_run else "")
    return json.loads(running.kubectl.run("create", "--raw", path, "--filename=-", given=json.dumps(made)))


def refusal(running, document, **options):
    with pytest.raises(KubectlError) as caught:
        create(running, document, **options)
    return str(caught.value)


# --- Validation


@pytest.mark.parametrize("case", sorted(WEBHOOK_ONLY))
def test_the_api_server_refuses_what_only_we_see(server, case):
    _, document, field, words = next(each for each in datavolumes.REFUSED if each[0] == case)
    said = refusal(server, document)
    assert field in said
    assert words in said


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [each[1:] for each in datavolumes.REFUSED],
    ids=[each[0] for each in datavolumes.REFUSED],
)
def test_the_webhook_itself_refuses_every_wrong_datavolume_with_its_causes(server, document, field, words):
    response = server.ask(document)
    assert response["status"]["code"] == 422
    causes = response["status"]["details"]["causes"]
    assert any(words in each["message"] and field in (None, each["field"]) for each in causes)


def test_a_datavolume_without_a_spec_is_refused_by_the_schema(server):
    document = dv()
    del document["spec"]
    assert "is invalid: spec: Required value: Missing Data volume source" in refusal(server, document)


@pytest.mark.parametrize("who", CONSUMERS)
def test_what_other_programs_write_passes(server, who):
    create(server, CONSUMERS[who])


def test_a_claim_of_the_same_name_is_in_the_way_unless_it_is_adopted(server):
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}, "storageClassName": "none"}
    claim = obj("PersistentVolumeClaim", spec, name="taken", api_version="v1")
    server.kubectl.create(claim | {"metadata": {"name": "taken"}})
    wanted = dv() | {"metadata": {"name": "taken"}}
    assert f"Destination PVC {server.kubectl.namespace}/taken already exists" in refusal(server, wanted)
    create(
        server, dv() | {"metadata": {"name": "taken", "annotations": {"cdi.kubevirt.io/allowClaimAdoption": "true"}}}
    )
    server.kubectl.merge(
        "pvc", "taken", {"metadata": {"annotations": {"cdi.kubevirt.io/storage.populatedFor": "taken"}}}
    )
    create(server, wanted)
    server.kubectl.delete("pvc", "taken", wait=False)


def test_a_transfer_onto_an_existing_datavolume_is_refused(server):
    create(server, dv({"blank": {}}), dry_run=False, name="occupied")
    namespace = server.kubectl.namespace
    source = {"kind": "DataVolume", "namespace": namespace, "name": "moved"}
    response = server.ask(obj("ObjectTransfer", {"source": source, "target": {"name": "occupied"}}, namespace=None))
    assert f'ObjectTransfer target "{namespace}/occupied" already exists' in response["status"]["message"]
    assert server.ask(obj("ObjectTransfer", {"source": source, "target": {"name": "free"}}, namespace=None))["allowed"]
    server.kubectl.delete("dv", "occupied")


def test_the_protection_of_datavolumes_holds_while_there_are_any(server):
    create(server, dv({"blank": {}}), dry_run=False, name="protected")
    cdi = spoilt("CDI", uninstallStrategy="BlockUninstallIfWorkloadsExist") | {"status": {"phase": "Deployed"}}
    response = server.ask(None, operation="DELETE", old=cdi)
    assert (
        "since there are still DataVolumes present. Either delete all DataVolumes or change the uninstall strategy"
        in response["status"]["message"]
    )
    server.kubectl.delete("dv", "protected")


# --- Mutation


@pytest.fixture
def storage_class(server):
    """Create a StorageClass with an unknown provisioner, and a profile with its capabilities."""
    name = f"e-{secrets.token_hex(4)}"
    sets = [
        {"accessModes": ["ReadWriteMany"], "volumeMode": "Block"},
        {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"},
    ]
    kubectl = server.kubectl
    kubectl.create(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": "odd.example",
        }
    )
    kubectl.apply(obj("StorageProfile", {"claimPropertySets": sets}, name=name, namespace=None))
    yield name
    kubectl.delete("storageclass", name)
    kubectl.delete("storageprofile", name)


def labelled(storage_class, **spec):
    metadata = {"name": "completed", "labels": {"cdi.kubevirt.io/applyStorageProfile": "true"}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata,
            "spec": {"storageClassName": storage_class, "resources": {"requests": {"storage": "100Mi"}}} | spec}  # fmt: skip


def test_a_claim_is_completed_from_its_profile(server, storage_class):
    made = create(server, labelled(storage_class, volumeMode="FromStorageProfile"))
    assert (made["spec"]["accessModes"], made["spec"]["volumeMode"]) == (["ReadWriteMany"], "Block")
    assert made["spec"]["resources"]["requests"]["storage"] == "100Mi"


def test_a_claim_that_names_no_mode_is_a_file_system_by_kubernetes_own_default(server, storage_class):
    made = create(server, labelled(storage_class))
    assert (made["spec"]["accessModes"], made["spec"]["volumeMode"]) == (["ReadWriteOnce"], "Filesystem")
    assert made["spec"]["resources"]["requests"]["storage"] == "106Mi"


def test_a_clone_that_names_no_size_gets_that_of_its_source(server, storage_class):
    source = labelled(storage_class, accessModes=["ReadWriteOnce"]) | {"metadata": {"name": "golden"}}
    server.kubectl.create(source)
    populator = obj("VolumeCloneSource", {"source": {"kind": "PersistentVolumeClaim", "name": "golden"}})
    create(server, populator, dry_run=False, name="golden")
    reference = {"apiGroup": "cdi.kubevirt.io", "kind": "VolumeCloneSource", "name": "golden"}
    none = {"requests": {"storage": "0"}}
    made = create(server, labelled(storage_class, volumeMode="Filesystem", dataSourceRef=reference, resources=none))
    assert made["spec"]["resources"]["requests"]["storage"] == "100Mi"
    server.kubectl.delete("volumeclonesource", "golden")
    server.kubectl.delete("pvc", "golden", wait=False)


def test_a_claim_without_the_label_is_none_of_our_business(server, storage_class):
    claim = labelled(storage_class)
    del claim["metadata"]["labels"]
    said = refusal(server, claim)
    assert "webhook" not in said
    assert "at least 1 access mode is required" in said


# --- Certificates


def test_everything_is_renewed_while_nobody_is_refused(server):
    """Signer, certificate and path are lost in turn while the API server keeps calling the webhooks."""
    failures, done = [], threading.Event()

    def keep_asking():
        while not done.is_set():
            try:
                create(server, dv({"blank": {}}))
            except KubectlError as error:
                failures.append(str(error))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    ways = {client_of(server.kubectl, each)["url"] for each in server.documents}
    try:
        server.kubectl.delete("secret", WAY)
        for secret in (SERVER_CERT, SIGNER, SERVER_CERT):
            before, authority = server.shown(), server.bundle()
            server.kubectl.delete("secret", secret)
            if secret == SIGNER:
                until("there is another authority", lambda: server.bundle() not in ("", authority))
                assert authority.strip() in server.bundle()
                assert server.shown() == before
                # A certificate authority signs only after it has been trusted for a minute.
            else:
                until("there is another certificate", lambda: server.shown() != before)
            assert server.ready()
        until(
            "it is asked in another way",
            lambda: not ways & {client_of(server.kubectl, each)["url"] for each in server.documents},
            SETTLES,
        )
        assert server.ask(dv({"blank": {}}))["allowed"]
    finally:
        done.set()
        asking.join()
    assert failures == []


def test_who_was_not_told_the_way_is_not_listened_to(server):
    """A request without the secret path gets 404, whatever its object."""
    document = dv({"blank": {}})
    hook = hook_of(document, "CREATE")
    for path in (hook.path, f"/{'0' * 64}{hook.path}", f"/{server.words()[0][:-1]}{hook.path}"):
        assert server.fetch(path, body(document))[0] == 404


def test_a_way_that_somebody_alters_is_put_right(server):
    document = next(each for each in server.documents if each["metadata"]["name"].endswith("datavolume-validate"))
    right = client_of(server.kubectl, document)["url"]
    wrong = right.replace(server.words()[0], "0" * 64)
    patch = [{"op": "replace", "path": "/webhooks/0/clientConfig/url", "value": wrong}]
    server.kubectl.run(
        "patch", document["kind"], document["metadata"]["name"], "--type=json", f"--patch={json.dumps(patch)}"
    )
    assert wrong != right
    until("it is right again", lambda: client_of(server.kubectl, document)["url"] == right)


def test_trust_that_somebody_takes_away_is_put_back(server):
    document = next(each for each in server.documents if each["metadata"]["name"].endswith("datavolume-validate"))
    kind, name = document["kind"], document["metadata"]["name"]
    server.kubectl.run(
        "patch", kind, name, "--type=json", '--patch=[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]'
    )
    until("it is trusted again", lambda: trusted(server.kubectl, [document], server.bundle))


def test_replicas_that_start_at_once_show_the_same_certificate(cluster, definitions, tmp_path):  # noqa: F811
    with cluster.namespace("e-admission") as kubectl:
        replicas = [Server(cluster, kubectl, free_port(), tmp_path / f"log-{index}") for index in range(2)]
        try:
            for each in replicas:
                until("it is ready", each.ready)
            until("they agree", lambda: len({each.shown() for each in replicas}) == 1)
        finally:
            for each in replicas:
                each.process.kill()
                each.process.wait()


# --- Start and shutdown


def test_it_ends_gracefully(cluster, definitions, tmp_path):  # noqa: F811
    with cluster.namespace("e-admission") as kubectl:
        one = Server(cluster, kubectl, free_port(), tmp_path / "log")
        try:
            until("it is ready", one.ready)
            one.process.send_signal(signal.SIGTERM)
            # Clients that have not noticed the shutdown yet are still served.
            until("it says that it ends", lambda: one.fetch("/readyz") == (503, "the server is shutting down\n"))
            assert one.ask(dv({"blank": {}}))["allowed"]
            assert one.process.wait(TIMEOUT) == 0
        finally:
            one.process.kill()
            one.process.wait()
        records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert [each["message"] for each in records if each["logger"] == "cdi.server.server"][-1] == "ending"
        assert not any(each["level"] == "error" for each in records)


def test_deleting_and_marking_go_on_while_nobody_answers(cluster, definitions):  # noqa: F811
    """The webhooks are configured, but their server does not answer."""
    with cluster.namespace("e-admission") as kubectl:
        labels = {"cdi-test": kubectl.namespace}
        before = obj("DataVolume", dv({"blank": {}})["spec"], name="before")
        before["metadata"] = {"name": "before", "labels": labels, "finalizers": ["example.org/hold"]}
        kubectl.create(before)
        with webhooks(kubectl, cluster.host_address, free_port()):
            until("new ones wait", lambda: not can_create(kubectl, labels))
            kubectl.merge("dv", "before", {"metadata": {"annotations": {"a": "b"}}})
            kubectl.run(
                "patch",
                "dv",
                "before",
                "--subresource=status",
                "--type=merge",
                '--patch={"status":{"phase":"Pending"}}',
            )
            kubectl.delete("dv", "before", wait=False)
            kubectl.merge("dv", "before", {"metadata": {"finalizers": None}})
            kubectl.wait_gone("dv", "before")
            # No webhook applies to claims.
            spec = {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Mi"}},
                "storageClassName": "none",
            }
            metadata = {"name": "data", "labels": labels | {"cdi.kubevirt.io/applyStorageProfile": "true"}}
            kubectl.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})


def can_create(kubectl, labels):
    document = dv({"blank": {}}) | {"metadata": {"name": "later", "labels": labels}}
    path = f"/apis/cdi.kubevirt.io/v1beta1/namespaces/{kubectl.namespace}/datavolumes?dryRun=All"
    try:
        kubectl.run("create", "--raw", path, "--filename=-", given=json.dumps(document))
    except KubectlError:
        return False
    return True


def test_what_is_sound_is_allowed_by_the_process(server):
    assert server.ask(sound("DataImportCron"))["allowed"]
