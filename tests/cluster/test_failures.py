"""Failures and how they are reported: phase, conditions, Events, remedy, and leftovers.

Most failures happen concurrently in one namespace; each test checks its own DataVolume. Cluster-wide failures (default
class, node) last seconds and are reverted.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import secrets
import ssl
import threading
import time
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme

from tests.cluster.cdi import controller
from tests.cluster.cluster import Cluster
from tests.cluster.event_log import Chronicle, following
from tests.cluster.kubectl import Kubectl
from tests.cluster.reader import digests, pod_of_many, told
from tests.cluster.servers import secret
from tests.cluster.test_apiserver import until
from tests.cluster.volumes import IMMEDIATE, MIB, conditions, data_volume, disk, qcow2, sha256
from tests.cluster.worker_pods import RESTRICTED
from tests.faults.server import Fault, FaultServer

Document = dict[str, Any]
TIMEOUT = 300.0
USER, PASSWORD = "importer", "right"
LATE = f"late-{secrets.token_hex(3)}"
"""A StorageClass that is created late; it is cluster-scoped, so its name is unique."""
ANNOTATION = "cdi.kubevirt.io/"
NOT_THERE = "127.0.0.1:1/cdi/not-there:1"
"""An image that every node fails to pull immediately."""


@dataclass(slots=True, kw_only=True)
class Scene:
    cluster: Cluster
    place: Kubectl
    chronicle: Chronicle
    server: FaultServer
    tls: FaultServer
    content: bytes
    image: bytes
    authority: str
    """The CA certificate of `tls`."""
    documents: list[Document] = field(default_factory=list)

    def add(self, name: str, source: Document, storage_class: str | None, **more: Any) -> None:
        self.documents.append(data_volume(name, source, storage_class, **more))

    def until_said(self, name: str, *words: str) -> Document:
        """Return the first state of the DataVolume whose Ready message contains all of these words."""

        def there(document: Document) -> bool:
            message = conditions(document).get("Detail", {}).get("message", "")
            return all(word in message for word in words)

        return self.chronicle.wait("datavolumes", name, f"says {words}", there, TIMEOUT)

    def failed(self, name: str, patience: float = TIMEOUT) -> Document:
        return self.chronicle.wait_phase(name, "Failed", patience=patience)

    def failed_tries(self, name: str, reason: str) -> None:
        """Wait until a failed attempt is reported where KubeVirt's CDI reports it: Events and claim annotations."""

        def told() -> bool:
            return (
                reason in self.chronicle.event_reasons(name)
                and "ErrImportFailed" in self.chronicle.event_reasons(name, "PersistentVolumeClaim")
                and any(_shows(claim, reason) for claim in self.chronicle.states("persistentvolumeclaims", name))
            )

        self.chronicle.until(f"{name} is reported", told, TIMEOUT)

    def wait_no_trace(self, name: str) -> None:
        """Wait until the DataVolume has no worker pod, prime PVC or scratch PVC."""
        owned = {state["metadata"]["uid"] for state in self.chronicle.states("persistentvolumeclaims", name)}

        def traces() -> list[str]:
            claims, pods = self.chronicle.present("persistentvolumeclaims"), self.chronicle.present("pods")
            primes = {f"prime-{uid}" for uid in owned} & set(claims)
            filled = {name, *(f"prime-{uid}" for uid in owned)}
            return [
                *primes,
                *({f"{each}-scratch" for each in filled} & set(claims)),
                *({f"importer-{each}" for each in filled} & set(pods)),
            ]

        self.chronicle.until(f"nothing is left of {name}", lambda: not traces(), TIMEOUT)

    def right(self, *names: str, mode: str = "Filesystem") -> None:
        """Wait until these DataVolumes are Succeeded, and assert that the volumes hold the image."""
        self.chronicle.until(
            f"{names} Succeeded",
            lambda: all(self.chronicle.phases(name)[-1:] == ["Succeeded"] for name in names),
            TIMEOUT,
        )
        claims = dict.fromkeys(names, mode)
        reader = f"reader-{secrets.token_hex(3)}"
        self.place.create(pod_of_many(reader, self.cluster.image, digests(claims, len(self.content)), claims))
        found = told(self.place, self.chronicle, reader, TIMEOUT)
        assert found == dict.fromkeys(names, (sha256(self.content), "0"))


def _shows(claim: Document, reason: str) -> bool:
    annotations = claim["metadata"].get("annotations", {})
    shown = {part: annotations.get(f"{ANNOTATION}storage.condition.running{part}") for part in ("", ".reason")}
    phase = annotations.get(f"{ANNOTATION}storage.pod.phase")
    return (shown[""], shown[".reason"], phase) == ("false", reason, "Running")


@pytest.fixture(scope="module")
def scene(cluster, tmp_path_factory):
    content = disk()
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(cluster.host_address).configure_cert(context)
    with (
        FaultServer(host=cluster.host_address) as server,
        FaultServer(context, host=cluster.host_address) as tls,
        cluster.namespace("failures") as place,
        following(place) as chronicle,
        controller(cluster, place),
    ):
        place.run("label", "namespace", place.namespace, *(f"{name}={text}" for name, text in RESTRICTED.items()))
        made = Scene(
            cluster=cluster,
            place=place,
            chronicle=chronicle,
            server=server,
            tls=tls,
            content=content,
            image=qcow2(content, tmp_path_factory.mktemp("images")),
            authority=authority.cert_pem.bytes().decode(),
        )
        _begin(made)
        yield made


def _begin(scene: Scene) -> None:
    """Create all the failing imports at once."""
    place, server = scene.place, scene.server
    good = server.put("/good.qcow2", scene.image)
    secure = scene.tls.put("/good.qcow2", scene.image)
    gone = server.put("/gone.qcow2", always=Fault(status=404))
    right = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    private = server.put("/private.qcow2", scene.image, authorization=right)
    place.create(
        secret("wrong-password", accessKeyId=USER, secretKey="wrong"),
        secret("other-shape", username=USER, password=PASSWORD),
        authority("wrong-authority", trustme.CA().cert_pem.bytes().decode()),
        # Only the quota tests use storage of these classes.
        quota("claims", {"local-wait.storageclass.storage.k8s.io/persistentvolumeclaims": "0"}),
        quota("storage", {"csi-wait.storageclass.storage.k8s.io/requests.storage": "30Mi"}),
    )
    for name in ("claims", "storage"):
        in_force(place, name)
    scene.add("gone-csi", {"http": {"url": gone}}, "csi")
    scene.add("gone-local", {"http": {"url": gone}}, "local", mode="Block")
    nobody = f"{scene.cluster.host_address}:1"
    for storage_class in ("csi", "local"):
        scene.add(f"unreachable-{storage_class}", {"http": {"url": f"http://{nobody}/x.qcow2"}}, storage_class)
    scene.add("pulled", {"registry": {"url": f"docker://{nobody}/x:1"}}, "csi")
    scene.add("unknown-host", {"http": {"url": "http://nowhere.invalid/x.qcow2"}}, "csi")
    unavailable = server.put("/unavailable.raw", scene.content, always=Fault(status=503))
    scene.add("unavailable", {"http": {"url": unavailable}}, "csi")
    scene.add("unauthorized", {"http": {"url": private, "secretRef": "wrong-password"}}, "csi")
    wrong = f"sha256:{'0' * 64}"
    for storage_class in ("csi", "local"):
        scene.add(f"checksum-{storage_class}", {"http": {"url": good, "checksum": wrong}}, storage_class)
    scene.add("checksum-block", {"http": {"url": good, "checksum": wrong}}, "local", mode="Block")
    scene.add("small-csi", {"http": {"url": good}}, "csi", mode="Block", size="4Mi")
    scene.add("small-local", {"http": {"url": good}}, "local", size="5Mi")
    scene.add("no-secret", {"http": {"url": good, "secretRef": "comes-late"}}, "csi")
    scene.add("no-config-map", {"http": {"url": secure, "certConfigMap": "comes-late"}}, "local")
    scene.add("other-shape", {"http": {"url": private, "secretRef": "other-shape"}}, "local")
    scene.add("untrusted", {"http": {"url": secure}}, "csi")
    scene.add("wrong-authority", {"http": {"url": secure, "certConfigMap": "wrong-authority"}}, "csi")
    scene.add("quota-claim", {"http": {"url": good}}, "local-wait", annotations={IMMEDIATE: ""})
    scene.add("quota-prime", {"http": {"url": good}}, "csi-wait", annotations={IMMEDIATE: ""})
    scene.add("unknown-class", {"http": {"url": good}}, LATE)
    scene.add("classless", {"http": {"url": good}}, "")
    busy = server.put(
        "/busy.qcow2", scene.image, faults=[Fault(status=503), Fault(status=503), Fault(reset_after=3000)]
    )
    scene.add("busy", {"http": {"url": busy}}, "csi")
    scene.add(
        "unsupported",
        {"vddk": {"url": "https://vcenter", "uuid": "1", "backingFile": "x", "thumbprint": "x", "secretRef": "x"}},
        "csi",
    )
    place.create(*scene.documents)
    _correct(scene)


def _correct(scene: Scene) -> None:
    """Correct each cause once its message has appeared; the imports recover without further action."""
    place = scene.place
    for name, words in TOLD.items():
        scene.until_said(name, *words)
    place.apply(
        secret("wrong-password", accessKeyId=USER, secretKey=PASSWORD),
        authority("wrong-authority", scene.authority),
        secret("comes-late", accessKeyId="anybody", secretKey="anything"),
        authority("comes-late", scene.authority),
        secret("other-shape", accessKeyId=USER, secretKey=PASSWORD),
        quota("storage", {"csi-wait.storageclass.storage.k8s.io/requests.storage": "60Mi"}),
    )
    place.delete("resourcequota", "claims")


TOLD = {
    "unauthorized": ("401", "secretRef"),
    "wrong-authority": ("certificate",),
    "no-secret": ("Secret", "comes-late", "does not exist", "Try: create it"),
    "no-config-map": ("ConfigMap", "comes-late", "does not exist", "Try: create it"),
    "other-shape": ("accessKeyId", "secretKey", "password, username"),
    "quota-claim": ("PVC quota-claim", "exceeded quota: claims", "Try: raise the quota"),
    "quota-prime": ("PVC prime-", "exceeded quota: storage", "Try: raise the quota"),
}
"""Expected words in the message of each correctable failure."""


def authority(name: str, pem: str) -> Document:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"ca.pem": pem}}


def quota(name: str, hard: dict[str, str]) -> Document:
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}}


def in_force(place: Kubectl, name: str) -> None:
    """Wait until a quota is in force; a claim created earlier is not counted."""
    place.wait("resourcequota", name, "in force", lambda it: "used" in it.get("status", {}))


def warnings(scene: Scene, name: str) -> dict[str, str]:
    """Return the last message of each warning Event by reason."""
    return {event["reason"]: event["message"] for event in scene.chronicle.events(name) if event["type"] == "Warning"}


# --- Source --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gone-csi", "gone-local"])
def test_an_image_that_is_not_there_is_told_and_looked_for_again(scene, name) -> None:
    state = scene.until_said(name, "404", "/gone.qcow2", "Try: check the URL")
    found = conditions(state)
    assert (found["Ready"]["status"], found["Detail"]["reason"]) == ("False", "SourceNotFound")
    assert (found["Running"]["status"], found["Running"]["reason"]) == ("False", "Error")
    assert found["Running"]["message"].startswith("Unable to connect to http data source: ")
    assert state["status"]["phase"] == "ImportInProgress"
    scene.failed_tries(name, "Error")


def test_an_image_that_comes_later_is_imported(scene) -> None:
    scene.server.file("/gone.qcow2").always = None
    scene.server.put("/gone.qcow2", scene.image)
    for name, mode in (("gone-csi", "Filesystem"), ("gone-local", "Block")):
        scene.right(name, mode=mode)
        assert "Failed" not in scene.chronicle.phases(name)
        scene.wait_no_trace(name)


@pytest.mark.parametrize("name", ["unreachable-csi", "unreachable-local"])
def test_a_server_that_is_not_reached_is_told_from_the_first_try_on(scene, name) -> None:
    """The first failed attempt is reported, although the worker keeps retrying."""
    state = scene.until_said(name, "no connection to")
    found = conditions(state)
    assert (found["Running"]["status"], found["Running"]["reason"]) == ("False", "Error")
    assert found["Running"]["message"].startswith("Unable to connect to http data source: no connection to ")
    assert (state["status"]["phase"], state["status"]["restartCount"]) == ("ImportInProgress", 0)
    scene.failed_tries(name, "Error")
    shown = scene.place.run(
        "get", "datavolume", name, "--output=jsonpath={.status.conditions[?(@.type=='Running')].reason}"
    )
    assert shown == "Error"


def test_a_registry_that_is_not_reached_failed_to_give_the_image(scene) -> None:
    found = conditions(scene.until_said("pulled", "no connection"))
    assert (found["Running"]["status"], found["Running"]["reason"]) == ("False", "ImagePullFailed")
    assert found["Running"]["message"].startswith("Unable to process data: failed to pull image: ")
    scene.failed_tries("pulled", "ImagePullFailed")


def test_a_host_that_nobody_knows_is_told(scene) -> None:
    found = conditions(scene.until_said("unknown-host", "cannot resolve nowhere.invalid"))
    assert (found["Running"]["status"], found["Running"]["reason"]) == ("False", "Error")
    assert found["Running"]["message"].startswith("Unable to connect to http data source: ")


def test_what_a_server_brings_in_the_end_is_shown_as_running_again(scene) -> None:
    state = scene.until_said("unavailable", "503")
    assert conditions(state)["Running"]["reason"] == "Error"
    scene.server.file("/unavailable.raw").always = Fault(drip=(1 << 16, 0.06))

    def runs() -> bool:
        reasons = scene.chronicle.reasons("unavailable", "Running")
        return "Pod is running" in reasons[reasons.index("Error") :]

    scene.chronicle.until("it runs again", runs, TIMEOUT)
    scene.server.file("/unavailable.raw").always = None
    scene.right("unavailable")


def test_a_wrong_password_is_told_and_the_import_goes_on_with_the_right_one(scene) -> None:
    state = scene.until_said("unauthorized", *TOLD["unauthorized"])
    found = conditions(state)
    assert (found["Detail"]["reason"], found["Running"]["reason"]) == ("SourceUnauthorized", "Error")
    assert PASSWORD not in json.dumps(found) and "wrong" not in found["Detail"]["message"]
    assert state["status"]["phase"] == "ImportInProgress"
    scene.failed_tries("unauthorized", "Error")
    scene.right("unauthorized")
    scene.wait_no_trace("unauthorized")


def test_a_server_that_is_busy_and_breaks_off_is_waited_for(scene) -> None:
    scene.right("busy")
    last = scene.chronicle.states("datavolumes", "busy")[-1]
    assert last["status"]["restartCount"] == 0


def test_a_certificate_that_nobody_vouches_for(scene) -> None:
    found = conditions(scene.until_said("untrusted", "certificate", "certConfigMap"))
    assert (found["Detail"]["reason"], found["Running"]["reason"]) == ("SourceTlsUntrusted", "Error")
    assert "Try: put the issuing CA into a ConfigMap" in found["Detail"]["message"]


def test_a_config_map_with_the_wrong_authority_can_be_corrected(scene) -> None:
    found = conditions(scene.until_said("wrong-authority", *TOLD["wrong-authority"]))
    assert found["Detail"]["reason"] == "SourceTlsUntrusted"
    scene.right("wrong-authority")


def test_a_source_that_is_not_read(scene) -> None:
    found = conditions(scene.failed("unsupported"))
    assert found["Detail"]["reason"] == "SourceNotSupported"
    assert "vddk" in found["Detail"]["message"]
    scene.wait_no_trace("unsupported")


# --- Content -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checksum-csi", "checksum-local", "checksum-block"])
def test_a_wrong_checksum_ends_it_and_wipes_the_volume(scene, name) -> None:
    found = conditions(scene.failed(name))
    assert (found["Running"]["reason"], found["Detail"]["reason"]) == ("ChecksumError", "ChecksumMismatch")
    assert f"sha256:{'0' * 64}" in found["Detail"]["message"] and sha256(scene.image) in found["Detail"]["message"]
    scene.chronicle.until("told", lambda: "ImportFailed" in warnings(scene, name), TIMEOUT)
    scene.wait_no_trace(name)
    claim = scene.place.get("persistentvolumeclaim", name)
    assert claim["metadata"]["annotations"][f"{ANNOTATION}storage.import.fatalError"] == "true"
    if name == "checksum-csi":
        assert claim["status"]["phase"] == "Pending", "no pod can mount what was wrong"


def test_what_was_wrong_is_not_in_the_volume(scene) -> None:
    claims = {"checksum-local": "Filesystem", "checksum-block": "Block"}
    for name in claims:
        scene.failed(name)
        scene.wait_no_trace(name)
    script = f"ls -A /volumes/checksum-local | grep -cv lost+found | sed 's/^/files /'; {digests({'checksum-block': 'Block'}, 24 * MIB)}"
    scene.place.create(pod_of_many("wiped", scene.cluster.image, f"set +e\n{script}", claims))
    found = told(scene.place, scene.chronicle, "wiped", TIMEOUT)
    assert found == {"files": ("0",), "checksum-block": (sha256(bytes(24 * MIB)), "0")}


@pytest.mark.parametrize("name", ["small-csi", "small-local"])
def test_a_volume_that_is_too_small(scene, name) -> None:
    found = conditions(scene.failed(name))
    assert (found["Detail"]["reason"], found["Running"]["reason"]) == ("TargetTooSmall", "Error")
    message = found["Detail"]["message"]
    assert f"{len(scene.content)} bytes (8 MiB)" in message and f"{4 * MIB} bytes (4 MiB)" in message
    assert "Try: request storage: 8Mi" in message
    scene.chronicle.until("told", lambda: "ImportFailed" in warnings(scene, name), TIMEOUT)
    scene.wait_no_trace(name)


# --- References of a DataVolume ------------------------------------------------------------------------------------


def test_a_secret_that_is_missing_is_waited_for(scene) -> None:
    found = conditions(scene.until_said("no-secret", *TOLD["no-secret"]))
    assert found["Detail"]["reason"] == "NotFound"
    scene.right("no-secret")
    claim = scene.chronicle.states("persistentvolumeclaims", "no-secret")[-1]["metadata"]
    pod = scene.chronicle.states("pods", f"importer-prime-{claim['uid']}")[0]["metadata"]
    late = scene.place.get("secret", "comes-late")["metadata"]
    assert pod["creationTimestamp"] >= late["creationTimestamp"], "nothing was begun without it"
    scene.wait_no_trace("no-secret")


def test_a_config_map_that_is_missing_is_waited_for(scene) -> None:
    state = scene.until_said("no-config-map", *TOLD["no-config-map"])
    assert conditions(state)["Detail"]["reason"] == "NotFound"
    assert state["status"]["phase"] == "PVCBound"
    scene.right("no-config-map")


def test_a_secret_of_another_shape_is_told_by_its_keys(scene) -> None:
    found = conditions(scene.until_said("other-shape", *TOLD["other-shape"]))
    assert found["Detail"]["reason"] == "SourceCredentialsInvalid"
    assert PASSWORD not in found["Detail"]["message"]
    scene.right("other-shape")


# --- Storage -------------------------------------------------------------------------------------------------------


def test_a_class_that_does_not_exist_is_waited_for(scene) -> None:
    found = conditions(scene.until_said("unknown-class", f"StorageClass {LATE} does not exist", "Try: "))
    assert (found["Bound"]["status"], found["Bound"]["reason"]) == ("False", "ErrClaimNotValid")
    assert scene.chronicle.phases("unknown-class")[-1] == "Pending"
    scene.chronicle.until("told", lambda: "ErrClaimNotValid" in warnings(scene, "unknown-class"), TIMEOUT)
    known = scene.place.get("storageclass", "local")
    late = {
        key: known[key]
        for key in ("apiVersion", "kind", "provisioner", "volumeBindingMode", "parameters")
        if key in known
    }
    scene.place.create({**late, "metadata": {"name": LATE}})
    try:
        scene.right("unknown-class")
    finally:
        scene.place.delete("datavolume", "unknown-class")
        scene.place.delete("storageclass", LATE)


def test_no_class_at_all(scene) -> None:
    """An empty class name asks for a statically provisioned volume."""
    found = conditions(scene.until_said("classless", "without a StorageClass", "Try: "))
    bound = found["Bound"]
    assert (bound["status"], bound["reason"], bound["message"]) == ("False", "Pending", "PVC classless Pending")
    assert found["Detail"]["reason"] == "ErrClaimNotValid"
    assert scene.chronicle.phases("classless")[-1] == "Pending"


@pytest.mark.alone
def test_no_class_is_the_default_one(scene) -> None:
    """The cluster has no default class for a second or two."""
    mark = "storageclass.kubernetes.io/is-default-class"
    defaults = [
        each["metadata"]["name"] for each in scene.place.get_all("storageclasses")
        if each["metadata"].get("annotations", {}).get(mark) == "true"
    ]  # fmt: skip
    url = scene.server.url("/good.qcow2")
    try:
        for name in defaults:
            scene.place.merge("storageclass", name, {"metadata": {"annotations": {mark: "false"}}})
        time.sleep(1)  # a watch may take a second to deliver the change
        scene.place.create(data_volume("no-default", {"http": {"url": url}}, None))
        found = conditions(
            scene.until_said("no-default", "no StorageClass is named, and there is no default StorageClass")
        )
    finally:
        for name in defaults:
            scene.place.merge("storageclass", name, {"metadata": {"annotations": {mark: "true"}}})
    assert found["Bound"]["reason"] == "ErrClaimNotValid"
    scene.right("no-default")


# --- Pods ----------------------------------------------------------------------------------------------------------


def test_a_pod_that_fits_nowhere(scene) -> None:
    """The claim's consumer is scheduled to a node with a taint."""
    node = f"full-{secrets.token_hex(3)}"
    taint = {"key": "cdi.test/full", "effect": "NoSchedule"}
    scene.place.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}, "spec": {"taints": [taint]}})
    try:
        _fits_nowhere(scene, node)
    finally:
        scene.place.delete("node", node)


def _fits_nowhere(scene: Scene, node: str) -> None:
    url = scene.server.url("/good.qcow2")
    document = data_volume("unschedulable", {"http": {"url": url}}, "csi-wait", size="5Mi")
    scene.place.apply(quota("storage", {"csi-wait.storageclass.storage.k8s.io/requests.storage": "200Mi"}))
    scene.place.create(document)
    scene.chronicle.wait_phase("unschedulable", "PendingPopulation", patience=TIMEOUT)
    annotation = {"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}}
    scene.place.merge("persistentvolumeclaim", "unschedulable", annotation)
    found = conditions(scene.until_said("unschedulable", "cannot be scheduled", "nodes are available"))
    assert (found["Running"]["status"], found["Running"]["reason"]) == ("False", "Unschedulable")
    assert scene.chronicle.phases("unschedulable")[-1] == "ImportScheduled"
    scene.chronicle.wait(
        "persistentvolumeclaims", "unschedulable", "says so",
        lambda it: it["metadata"]["annotations"].get(f"{ANNOTATION}storage.pod.schedulable") == "false", TIMEOUT,
    )  # fmt: skip
    scene.place.delete("datavolume", "unschedulable", wait=False)
    scene.wait_no_trace("unschedulable")


def test_an_image_of_the_worker_that_cannot_be_pulled(cluster, scene) -> None:
    url = scene.server.url("/good.qcow2")
    with cluster.namespace("pull") as place, following(place) as chronicle:
        with controller(cluster, place, image=NOT_THERE):
            place.create(data_volume("pull", {"http": {"url": url}}, "csi"))
            said = chronicle.wait(
                "datavolumes", "pull", "says so",
                lambda it: conditions(it).get("Running", {}).get("reason") == "ImagePullFailed", TIMEOUT,
            )  # fmt: skip
            found = conditions(said)
            assert said["status"]["phase"] == "ImportScheduled"
            assert NOT_THERE in found["Running"]["message"]
            assert "Try: check the controller's IMPORTER_IMAGE" in found["Running"]["message"]
        # Only the option is corrected.
        with controller(cluster, place, "--no-leader-election"):
            chronicle.wait_phase("pull", "Succeeded", patience=TIMEOUT)
            chronicle.wait_clean(TIMEOUT)


@contextlib.contextmanager
def limiting(cluster: Cluster, place: Kubectl, memory: str):
    """Limit the memory of every pod of the namespace with a mutating webhook, as a policy engine does."""
    if not cluster.host_address:
        pytest.skip("the API server does not reach this machine")
    patch = [
        {
            "op": "replace",
            "path": "/spec/containers/0/resources",
            "value": {"limits": {"memory": memory, "cpu": "750m"}},
        }
    ]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            review["response"] = {
                "uid": review["request"]["uid"], "allowed": True, "patchType": "JSONPatch",
                "patch": b64encode(json.dumps(patch).encode()).decode(),
            }  # fmt: skip
            del review["request"]
            body = json.dumps(review).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    trust = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.issue_cert(cluster.host_address).configure_cert(context)
    server = http.server.ThreadingHTTPServer((cluster.host_address, 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    name = f"limits-{place.namespace}"
    hook = {
        "name": "limits.cdi.test",
        "clientConfig": {
            "url": f"https://{cluster.host_address}:{server.server_address[1]}/",
            "caBundle": b64encode(trust.cert_pem.bytes()).decode(),
        },
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": place.namespace}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "failurePolicy": "Fail",
    }
    try:
        place.create(
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "MutatingWebhookConfiguration",
                "metadata": {"name": name},
                "webhooks": [hook],
            }
        )
        container = {"name": "sample", "image": "none"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sample"}, "spec": {"containers": [container]}}
        dry_run = ("create", "--dry-run=server", "--output=json", "--filename=-")
        until("the API server calls the webhook", lambda: memory in place.run(*dry_run, given=json.dumps(pod)))
        yield
    finally:
        place.delete("mutatingwebhookconfiguration", name)
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_worker_with_too_little_memory_is_named_as_such(cluster, scene) -> None:
    url = scene.server.url("/good.qcow2")
    with cluster.namespace("memory") as place, following(place) as chronicle, controller(cluster, place):
        with limiting(cluster, place, "20M"):
            place.create(data_volume("memory", {"http": {"url": url}}, "local"))
            failed = chronicle.wait_phase("memory", "Failed", patience=TIMEOUT)
        found = conditions(failed)
        assert (found["Detail"]["reason"], found["Running"]["reason"]) == ("ResourceLimit", "Error")
        assert "OOMKilled" in found["Detail"]["message"] and "limit of 20M" in found["Detail"]["message"]
        assert "Try: raise limits.memory in CDIConfig's podResourceRequirements" in found["Detail"]["message"]
        chronicle.wait_clean(TIMEOUT)


# --- Outages -------------------------------------------------------------------------------------------------------


def slow_image(scene: Scene) -> tuple[bytes, Fault]:
    """Return a disk and a fault that slow the import down enough for a kubelet to stop during it."""
    return scene.content * 2, Fault(drip=(1 << 16, 0.2))


def until_under_way(scene: Scene, server: FaultServer, path: str, name: str) -> str:
    """Wait until a tenth of the disk is fetched, and return the uid of the worker pod."""
    scene.chronicle.until(
        "fetched in part",
        lambda: any(progress(state) >= 10 for state in scene.chronicle.states("datavolumes", name)),
        TIMEOUT,
    )
    assert server.asked(path)
    pod = next(pod for each, pod in scene.chronicle.present("pods").items() if each == f"importer-{name}")
    uid: str = pod["metadata"]["uid"]
    return uid


def progress(document: Document) -> float:
    text = document.get("status", {}).get("progress", "N/A")
    return 0.0 if text == "N/A" else float(text.removesuffix("%"))


def test_a_server_that_goes_away_and_comes_back(scene) -> None:
    image, slowly = slow_image(scene)
    with FaultServer(host=scene.cluster.host_address) as first:
        url = first.put("/away.raw", image, always=slowly)
        source = {"http": {"url": url, "checksum": f"sha256:{sha256(image)}"}}
        scene.place.create(data_volume("away", source, "local", size="40Mi"))
        pod = until_under_way(scene, first, "/away.raw", "away")
    scene.until_said("away", "no connection to")
    assert scene.chronicle.reasons("away", "Running")[-1:] == ["Error"]
    with FaultServer(host=scene.cluster.host_address, port=first.port) as second:
        second.put("/away.raw", image)
        scene.chronicle.wait_phase("away", "Succeeded", patience=TIMEOUT)
        starts = [request.range[0] for request in second.asked("/away.raw") if request.range is not None]
    assert starts and min(starts) > 0, "it went on from where it was"
    workers = {state["metadata"]["uid"] for state in scene.chronicle.states("pods", "importer-away")}
    assert workers == {pod}


@pytest.mark.alone
def test_a_node_that_does_not_answer(scene) -> None:
    """The kubelet is stopped, and the node gets the condition that the node controller sets after forty seconds."""
    if scene.cluster.layout is None:
        pytest.skip("only our own cluster's node is stopped")
    image, slowly = slow_image(scene)
    url = scene.server.put("/node.raw", image, always=slowly)
    scene.place.create(data_volume("node", {"http": {"url": url}}, "local", size="40Mi"))
    pod = until_under_way(scene, scene.server, "/node.raw", "node")
    node = scene.chronicle.states("pods", "importer-node")[-1]["spec"]["nodeName"]
    scene.cluster.stop("kubelet")
    try:
        lost = {"status": {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]}}
        scene.place.run(
            "patch", "node", node, "--subresource=status", "--type=strategic", f"--patch={json.dumps(lost)}"
        )
        said = scene.chronicle.wait(
            "datavolumes", "node", "says so",
            lambda it: conditions(it).get("Running", {}).get("reason") == "NodeLost", TIMEOUT,
        )  # fmt: skip
    finally:
        scene.cluster.start("kubelet")
    assert f"node {node} is not responding" in conditions(said)["Running"]["message"]
    assert "Try: " in conditions(said)["Running"]["message"]
    scene.chronicle.wait_phase("node", "Succeeded", patience=TIMEOUT)
    workers = {state["metadata"]["uid"] for state in scene.chronicle.states("pods", "importer-node")}
    assert workers == {pod}, "no worker was restarted"


# --- Quotas (last, because they are retried once a minute) ---------------------------------------------------------


def refused_by_quota(scene: Scene, name: str) -> None:
    """Assert that the quota error is reported; it is retried once a minute."""
    state = scene.until_said(name, *TOLD[name])
    found = conditions(state)
    assert state["status"]["phase"] == "Pending"
    assert (found["Bound"]["status"], found["Bound"]["reason"]) == ("False", "ErrExceededQuota")
    assert found["Detail"]["reason"] == "QuotaExceeded"
    assert "ErrExceededQuota" in warnings(scene, name)


def test_a_quota_for_claims_is_told_and_the_import_follows_when_it_is_raised(scene) -> None:
    refused_by_quota(scene, "quota-claim")
    scene.right("quota-claim")
    scene.wait_no_trace("quota-claim")


def test_a_quota_that_has_no_room_for_the_prime_claim(scene) -> None:
    """A populated claim needs twice its size during the import."""
    refused_by_quota(scene, "quota-prime")
    scene.right("quota-prime")
    scene.wait_no_trace("quota-prime")


def test_nothing_of_it_is_left(scene) -> None:
    """Imports that are still waiting are deleted halfway."""
    scene.place.run("delete", "datavolumes", "--all", "--wait=false")
    scene.chronicle.until("all are gone", lambda: not scene.chronicle.present("datavolumes"), TIMEOUT)
    scene.chronicle.wait_clean(TIMEOUT)
