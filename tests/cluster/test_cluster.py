"""Properties of the test cluster that the importer's tests rely on, checked from outside."""

import base64
import http.server
import json
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster import build, leftovers, pki
from tests.cluster.kubectl import KubectlError
from tests.cluster.objects import DEVICE, DIRECTORY, claim, is_phase, phase, pod

SLOW = 300.0  # seconds for what takes a few on an idle machine

WRITE = {
    "Filesystem": f"echo '%s' > {DIRECTORY}/data; sync",
    "Block": f"echo '%s' | dd of={DEVICE} conv=fsync,notrunc 2>/dev/null",
}
READ = {"Filesystem": f"cat {DIRECTORY}/data", "Block": f"head -n 1 {DEVICE}"}
SIZE = {
    "Filesystem": f"stat -fc '%S %b' {DIRECTORY} | {{ read each count; echo $((each * count)); }}",
    "Block": f"dd if={DEVICE} bs=1M 2>/dev/null | wc -c",
}
MIB = 1 << 20

each_mode = pytest.mark.parametrize("mode", ["Filesystem", "Block"])
each_kind = pytest.mark.parametrize(
    ("csi", "waits"),
    [(True, False), (True, True), (False, False), (False, True)],
    ids=["csi", "csi-wait", "local", "local-wait"],
)


@pytest.fixture(scope="module")
def classes(cluster):
    return cluster.storage_classes()


@pytest.fixture
def storage(classes):
    """Return a function that chooses a storage class by its capabilities."""

    def choose(*, csi, waits=False, snapshots=False, expands=False):
        for each in classes:
            if (each.csi, each.waits) != (csi, waits):
                continue
            if (each.snapshot_class or not snapshots) and (each.expands or not expands):
                return each
        pytest.skip("this cluster has no such storage class")

    return choose


@pytest.fixture
def script(cluster, namespace):
    """Return a function that runs a shell script in a pod and returns its output."""

    def run(name, text, **claims):
        namespace.create(pod(name, cluster.image, text, claims={k.replace("_", "-"): v for k, v in claims.items()}))
        document = namespace.wait("pod", name, "at its end", is_phase("Succeeded", "Failed"), SLOW)
        output = namespace.logs(name)
        assert phase(document) == "Succeeded", output
        namespace.delete("pod", name)
        return output.strip()

    return run


def bound(kubectl, name):
    return kubectl.wait("pvc", name, "bound", is_phase("Bound"), SLOW)


# --- Pods and volumes


def test_a_pod_runs_and_what_it_printed_is_there(script):
    assert script("hello", "echo hello; id -u") == "hello\n0"


def test_a_pod_that_fails_tells_its_exit_code_and_last_words(cluster, namespace):
    namespace.create(pod("unlucky", cluster.image, "echo last line; exit 3"))
    document = namespace.wait("pod", "unlucky", "at its end", is_phase("Failed"), SLOW)
    ended = document["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["message"].strip()) == (3, "last line")


def test_a_container_over_its_memory_limit_is_killed_for_that(cluster, namespace):
    document = pod("greedy", cluster.image, "head -c 200m /dev/zero | tail")
    document["spec"]["containers"][0]["resources"] = {"limits": {"memory": "16Mi"}}
    namespace.create(document)
    document = namespace.wait("pod", "greedy", "at its end", is_phase("Failed"), SLOW)
    assert document["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"


@each_mode
@each_kind
def test_a_volume_keeps_what_a_pod_wrote(namespace, storage, script, csi, waits, mode):
    namespace.create(claim("data", storage(csi=csi, waits=waits).name, mode=mode))
    if not waits:
        bound(namespace, "data")
    script("writer", WRITE[mode] % "first", data=mode)
    bound(namespace, "data")
    assert script("reader", READ[mode], data=mode) == "first"


@each_mode
@pytest.mark.parametrize("csi", [True, False], ids=["csi", "local"])
def test_a_new_volume_has_its_size_and_reads_as_zeros(namespace, storage, script, csi, mode):
    namespace.create(claim("data", storage(csi=csi).name, mode=mode, size="20Mi"))
    size = int(script("measure", SIZE[mode], data=mode))
    if mode == "Block":
        assert size == 20 * MIB
        assert script("zeros", f"tr -d '\\0' < {DEVICE} | wc -c", data=mode) == "0"
    else:
        assert 14 * MIB < size <= 20 * MIB


@pytest.mark.parametrize("csi", [True, False], ids=["csi", "local"])
def test_a_full_volume_refuses_more(namespace, storage, script, csi):
    namespace.create(claim("small", storage(csi=csi).name, size="16Mi"))
    text = f"dd if=/dev/zero of={DIRECTORY}/much bs=1M count=32 2>&1 || true"
    assert "No space left on device" in script("fill", text, small="Filesystem")


@pytest.mark.parametrize("csi", [True, False], ids=["csi", "local"])
def test_a_claim_that_waits_has_no_volume_until_a_pod_wants_it(cluster, namespace, storage, csi):
    patient, prompt = storage(csi=csi, waits=True), storage(csi=csi)
    namespace.create(claim("patient", patient.name))
    namespace.create(claim("prompt", prompt.name))  # created later, and bound first
    bound(namespace, "prompt")
    before = namespace.get("pvc", "patient")
    assert (phase(before), before["spec"].get("volumeName")) == ("Pending", None)
    namespace.create(pod("consumer", cluster.image, "true", claims={"patient": "Filesystem"}))
    after = bound(namespace, "patient")
    assert after["metadata"]["annotations"]["volume.kubernetes.io/selected-node"]


# --- CSI only


@each_mode
def test_a_snapshot_is_restored_as_it_was_taken(namespace, storage, script, mode):
    kind = storage(csi=True, snapshots=True)
    namespace.create(claim("origin", kind.name, mode=mode))
    script("first", WRITE[mode] % "before", origin=mode)
    namespace.create(
        {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshot",
            "metadata": {"name": "moment"},
            "spec": {
                "volumeSnapshotClassName": kind.snapshot_class,
                "source": {"persistentVolumeClaimName": "origin"},
            },
        }
    )
    namespace.wait("volumesnapshot", "moment", "ready", lambda each: each.get("status", {}).get("readyToUse"), SLOW)
    script("second", WRITE[mode] % "after!", origin=mode)
    source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "moment"}
    namespace.create(claim("restored", kind.name, mode=mode, source=source))
    assert script("restored", READ[mode], restored=mode) == "before"
    assert script("origin", READ[mode], origin=mode) == "after!"


def test_a_snapshot_of_a_mounted_volume_has_all_that_was_synced(cluster, namespace, storage, script):
    kind = storage(csi=True, snapshots=True)
    namespace.create(claim("origin", kind.name))
    busy = f"echo synced > {DIRECTORY}/data; sync; touch /tmp/written; sleep 1000"
    document = pod("busy", cluster.image, busy, claims={"origin": "Filesystem"})
    probe = {"exec": {"command": ["test", "-e", "/tmp/written"]}, "periodSeconds": 1}
    document["spec"]["containers"][0]["readinessProbe"] = probe
    namespace.create(document)

    def ready(each):
        return any(c["type"] == "Ready" and c["status"] == "True" for c in each.get("status", {}).get("conditions", []))

    namespace.wait("pod", "busy", "ready", ready, SLOW)
    source = {"kind": "PersistentVolumeClaim", "name": "origin"}
    namespace.create(claim("copy", kind.name, source=source))
    assert script("reader", READ["Filesystem"], copy="Filesystem") == "synced"


@each_mode
def test_a_clone_may_be_larger(namespace, storage, script, mode):
    kind = storage(csi=True)
    namespace.create(claim("origin", kind.name, mode=mode, size="32Mi"))
    script("writer", WRITE[mode] % "original", origin=mode)
    source = {"kind": "PersistentVolumeClaim", "name": "origin"}
    namespace.create(claim("copy", kind.name, mode=mode, size="64Mi", source=source))
    assert script("reader", READ[mode], copy=mode) == "original"
    assert int(script("measure", SIZE[mode], copy=mode)) > 40 * MIB


@each_mode
def test_a_volume_grows(namespace, storage, script, mode):
    namespace.create(claim("data", storage(csi=True, expands=True).name, mode=mode, size="32Mi"))
    script("writer", WRITE[mode] % "small", data=mode)
    namespace.merge("pvc", "data", {"spec": {"resources": {"requests": {"storage": "96Mi"}}}})
    volume = namespace.get("pvc", "data")["spec"]["volumeName"]
    namespace.wait("pv", volume, "grown", lambda each: each["spec"]["capacity"]["storage"] == "96Mi", SLOW)
    # A kernel that cannot grow a mounted file system grows it at the next mount, so the node needs a moment without a
    # pod that uses it.
    size = 0
    for number in range(10):
        time.sleep(2)
        size = int(script(f"measure-{number}", SIZE[mode], data=mode))
        if size > 70 * MIB:
            break
    assert size > 70 * MIB
    namespace.wait("pvc", "data", "grown", lambda each: each["status"]["capacity"]["storage"] == "96Mi", SLOW)
    assert script("reader", READ[mode], data=mode) == "small"


# --- Requirements of populators


@pytest.mark.parametrize("csi", [True, False], ids=["csi", "local"])
def test_a_claim_with_a_source_that_nobody_knows_stays_pending(cluster, namespace, storage, csi):
    kind = storage(csi=csi)
    namespace.create(claim("strange", kind.name, source={"apiGroup": "cdi.test", "kind": "Unknown", "name": "it"}))
    namespace.create(pod("consumer", cluster.image, "true", claims={"strange": "Filesystem"}))
    namespace.create(claim("plain", kind.name))  # created later, and bound first
    bound(namespace, "plain")
    document = namespace.get("pvc", "strange")
    assert (phase(document), document["spec"].get("volumeName")) == ("Pending", None)


def test_a_volume_that_was_filled_for_another_claim_can_be_handed_over(namespace, storage, script):
    kind = storage(csi=True)
    namespace.create(claim("prime", kind.name))
    script("fill", WRITE["Filesystem"] % "filled", prime="Filesystem")
    volume = bound(namespace, "prime")["spec"]["volumeName"]
    source = {"apiGroup": "cdi.test", "kind": "Unknown", "name": "it"}
    target = namespace.create(claim("target", kind.name, source=source))[0]["metadata"]
    reference = {key: target[key] for key in ("name", "namespace", "uid", "resourceVersion")}
    handed = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference}
    namespace.merge("pv", volume, {"spec": {"claimRef": handed}})
    assert bound(namespace, "target")["spec"]["volumeName"] == volume
    namespace.wait("pvc", "prime", "lost", is_phase("Lost"), SLOW)
    namespace.delete("pvc", "prime")
    assert script("reader", READ["Filesystem"], target="Filesystem") == "filled"


# --- Connections to this machine


class Webhook(http.server.BaseHTTPRequestHandler):
    """An HTTP handler that answers GET with its name and rejects objects with a certain label."""

    def do_GET(self):
        self.answer(b"this machine\n")

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
        refused = "refuse" in request["object"]["metadata"].get("labels", {})
        status = {"message": "this machine refuses it"} if refused else {}
        response = {"uid": request["uid"], "allowed": not refused, "status": status}
        self.answer(
            json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}).encode()
        )

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def served(address, context=None):
    """Run the webhook as a server on this machine; yield its port."""
    with http.server.ThreadingHTTPServer((address, 0), Webhook) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def service_outside(name, address, port, target):
    """Build a Service whose only endpoint is not a pod."""
    return (
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": port}]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": target, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        },
    )


@pytest.fixture
def host_address(cluster):
    if not cluster.host_address:
        pytest.skip("CDI_TEST_HOST_ADDRESS does not say where pods reach this machine")
    return cluster.host_address


# The node needs a moment to learn of a Service. curl's messages about earlier tries matter only if all tries fail.
FETCH = "curl -fsS --retry 60 --retry-delay 1 --retry-all-errors -m 60 %s 2>/tmp/why || { cat /tmp/why; exit 1; }"


def test_pods_reach_a_process_of_this_machine_by_service_and_by_address(namespace, script, host_address):
    with served(host_address) as port:
        namespace.create(*service_outside("outside", host_address, 80, port))
        assert script("by-name", FETCH % "http://outside/") == "this machine"
        assert script("by-address", FETCH % f"http://{host_address}:{port}/") == "this machine"


def test_the_api_server_asks_a_webhook_on_this_machine(cluster, namespace, host_address, tmp_path):
    authority = pki.authority("hooks")
    pki.issue(authority, "hook", names=(f"hook.{namespace.namespace}.svc",)).write(tmp_path, "hook")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "hook.crt", tmp_path / "hook.key")
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": namespace.namespace},
        "webhooks": [
            {
                "name": "hook.cdi.test",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.namespace}},
                "rules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
                ],
                "clientConfig": {
                    "caBundle": base64.b64encode(authority.certificate_pem).decode(),
                    "service": {"name": "hook", "namespace": namespace.namespace},
                },
            }
        ],
    }

    def config_map(name, **labels):
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}}

    def refusal(name):
        try:
            namespace.create(config_map(name, refuse="yes"))
        except KubectlError as error:
            return str(error)
        return ""

    def refused_soon():
        for attempt in range(100):
            if "this machine refuses it" in refusal(f"refused-{attempt}"):
                return True
            time.sleep(0.2)
        return False

    with served(host_address, context) as port:
        namespace.create(*service_outside("hook", host_address, 443, port))
        cluster.kubectl.create(configuration)
        try:
            # Until the API server has seen both, it does not call the webhooks or fails to.
            assert refused_soon()
            namespace.create(config_map("allowed"))
        finally:
            cluster.kubectl.delete("validatingwebhookconfiguration", namespace.namespace)


def test_this_machine_reaches_services(cluster, namespace):
    document = pod("web", cluster.image, "mkdir /www; echo page > /www/index.html; exec httpd -f -p 8080 -h /www")
    document["metadata"]["labels"] = {"app": "web"}
    namespace.create(document)
    namespace.create(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }
    )
    if cluster.layout is None:
        pytest.skip("services of someone else's cluster need not be reached from here")
    address = namespace.get("service", "web")["spec"]["clusterIP"]
    fetch = ["curl", "-fsS", "--noproxy", "*", "--retry", "50", "--retry-all-errors", "--retry-delay", "1", "-m", "60"]
    assert subprocess.run([*fetch, f"http://{address}/"], capture_output=True, check=True).stdout == b"page\n"


@contextmanager
def registry(address, directory):
    """Run a container registry on this machine over plain HTTP; yield its host and port."""
    with socket.socket() as free:
        free.bind((address, 0))
        place = f"{address}:{free.getsockname()[1]}"
    settings = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
        "http": {"addr": place, "secret": "x"},
    }
    (directory / "registry.yml").write_text(json.dumps(settings))
    with (
        open(directory / "registry.log", "wb") as log,
        subprocess.Popen(["docker-registry", "serve", directory / "registry.yml"], stdout=log, stderr=log) as process,
    ):
        try:
            ask = ["curl", "-fsS", "--noproxy", "*", "--retry", "60", "--retry-delay", "1", "--retry-all-errors"]
            subprocess.run([*ask, f"http://{place}/v2/"], check=True, capture_output=True)
            yield place
        finally:
            process.terminate()


def test_the_node_pulls_from_a_registry_on_this_machine(cluster, namespace, host_address, tmp_path):
    if cluster.layout is None:
        pytest.skip("someone else's nodes do not pull over plain HTTP")
    image = build.find(cluster.layout).images / "base.tar"
    with registry(host_address, tmp_path) as place:
        cluster.allow_plain_registry(place)
        copy = ["skopeo", "copy", "--dest-tls-verify=false", f"oci-archive:{image}:1", f"docker://{place}/base:pulled"]
        subprocess.run(copy, check=True, capture_output=True)
        namespace.create(pod("pulled", f"{place}/base:pulled", "echo here"))
        namespace.create(pod("absent", f"{place}/base:absent", "true"))
        namespace.wait("pod", "pulled", "at its end", is_phase("Succeeded"), SLOW)

        def reason(document):
            states = [each["state"] for each in document.get("status", {}).get("containerStatuses", [])]
            return any(state.get("waiting", {}).get("reason") == "ErrImagePull" for state in states)

        namespace.wait("pod", "absent", "without its image", reason, SLOW)


# --- The cluster's own programs


def test_what_a_restricted_namespace_forbids_is_refused(cluster, namespace):
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    cluster.kubectl.merge("namespace", namespace.namespace, label)
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        namespace.create(pod("careless", cluster.image, "true"))


def test_a_deleted_namespace_takes_its_pods_and_volumes_along(cluster, storage):
    with cluster.namespace("doomed") as kubectl:
        volumes = set()
        for index, mode in enumerate(("Filesystem", "Block")):
            name = f"data-{index}"
            kubectl.create(claim(name, storage(csi=True).name, mode=mode))
            kubectl.create(pod(f"user-{index}", cluster.image, "sleep 1000", claims={name: mode}))
            kubectl.wait("pod", f"user-{index}", "running", is_phase("Running"), SLOW)
            volumes.add(bound(kubectl, name)["spec"]["volumeName"])
    kubectl.wait_gone("namespace", kubectl.namespace, SLOW)
    for volume in volumes:
        kubectl.wait_gone("pv", volume, SLOW)
    if cluster.layout is not None:
        left = {path.name for path in (cluster.layout.data / "csi" / "volumes").iterdir()}
        assert not left & volumes


@pytest.mark.alone
def test_pods_run_on_while_the_api_server_and_the_kubelet_are_restarted(cluster, namespace, storage):
    if cluster.layout is None:
        pytest.skip("only our own cluster is handled like this")
    namespace.create(claim("data", storage(csi=True).name))
    namespace.create(pod("steady", cluster.image, "sleep 1000"))
    before = namespace.wait("pod", "steady", "running", is_phase("Running"), SLOW)
    cluster.kill("kube-apiserver")
    cluster.wait_ready()
    cluster.stop("kube-apiserver")
    cluster.restart("kubelet")
    time.sleep(5)  # meanwhile it cannot register its CSI drivers with the API server
    cluster.start("kube-apiserver")
    cluster.wait_ready()
    namespace.create(pod("after", cluster.image, "true", claims={"data": "Filesystem"}))
    namespace.wait("pod", "after", "at its end", is_phase("Succeeded"), SLOW)
    after = namespace.get("pod", "steady")
    assert phase(after) == "Running"
    assert (
        after["status"]["containerStatuses"][0]["containerID"]
        == before["status"]["containerStatuses"][0]["containerID"]
    )


def test_it_leaves_nothing_in_the_machines_own_tables(cluster):
    if cluster.layout is None:
        pytest.skip("only our own cluster is on this machine")
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/self/mounts").read_text()
    assert "KUBE" not in rules and "CNI" not in rules
    assert "kubelet" not in mounts and str(cluster.layout.base) not in mounts
    assert leftovers.process(cluster.layout) is not None
    # The kubelet has set these, in the node only.
    assert cluster.run("cat", "/proc/sys/vm/overcommit_memory").strip() == "1"
    assert cluster.run("cat", "/proc/sys/kernel/panic_on_oops").strip() == "1"
