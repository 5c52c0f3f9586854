"""Polls of DataImportCrons in the cluster, of real servers and by real nodes.

Most of the crons hold their versions (``golden.hold``), so that nothing is imported. Each poll is a real pod, which takes
more than a second of two processors: ``CDI_TEST_CRONS=200`` polls 200 of them at once, in about five minutes.
"""

import datetime as dt
import hashlib
import json
import os
import subprocess
import threading

import pytest

from cdi.api.names import cron_import, poll_cron_job, poll_pod
from cdi.api.poll import PollResult
from cdi.reconcile.dataimportcron.poll_record import PollRecord
from cdi.reconcile.dataimportcron.slots import MAX_POLLS
from tests.cluster import cdi
from tests.cluster.servers import serving
from tests.cluster.test_cli import Cdi
from tests.cluster.test_cluster import registry
from tests.cluster.volumes import conditions, digest, disk, sha256
from tests.integration.fixtures_registry import OciLayout

SLOW = 300  # seconds
IMPORT = "cdi.kubevirt.io/storage.import."
CRONS = int(os.environ.get("CDI_TEST_CRONS", "60"))
"""DataImportCrons that are due at once."""
MOST_MEMORY = 32 << 20
"""Bytes that the controller's memory may grow by for `CRONS` DataImportCrons, beyond what it needs for few."""
DISK = bytes(1 << 20)
SIZE = 2 << 20


def cron(name, source, *, schedule="0 0 1 1 *", **annotations):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataImportCron",
        "metadata": {
            "name": name,
            "annotations": {"cdi.kubevirt.io/golden.hold": "true", **annotations},
        },
        "spec": {
            "schedule": schedule,
            "managedDataSource": name,
            "template": {"spec": {"source": source, "storage": {"resources": {"requests": {"storage": "10Mi"}}}}},
        },
    }


def annotation(document, name):
    return (document["metadata"].get("annotations") or {}).get(f"{IMPORT}{name}")


def polled(document):
    return annotation(document, "lastCronTime") is not None


def desired(document):
    return annotation(document, "sourceDesiredDigest")


def has_digest(digest):
    return lambda document: desired(document) == digest


def poll_now(namespace, name):
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    namespace.merge("dataimportcron", name, {"metadata": {"annotations": {f"{IMPORT}nextCronTime": now}}})


def condition(document, kind):
    conditions = (document.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] == kind), None)


def found(document):
    result = PollRecord.read(document["metadata"].get("annotations") or {}).found
    assert isinstance(result, PollResult)
    return result


@pytest.fixture(scope="module")
def servers(cluster, tmp_path_factory):
    if not cluster.host_address:
        pytest.skip("the cluster does not reach this machine")
    with serving(tmp_path_factory.mktemp("servers"), cluster.host_address) as made:
        yield made


@pytest.fixture
def namespace(cluster):
    with cluster.namespace() as kubectl:
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "cdi-cronjob"}}
        kubectl.create(account)
        yield kubectl


@pytest.fixture
def running(cluster, namespace):
    with cdi.controller(cluster, namespace) as made:
        yield made


def push(servers, name, content):
    """Push an index of two architectures as ``name:latest`` and return its digest."""
    layout = OciLayout(servers.directory / f"layout-{name}-{len(content)}")
    entries = [
        layout.image([layout.layer({"disk/": b"", f"disk/{one}.img": content})], architecture=one)
        for one in ("amd64", "arm64")
    ]
    layout.index(entries, tag="latest")
    command = [
        "skopeo",
        "--insecure-policy",
        "copy",
        "--quiet",
        "--all",
        "--preserve-digests",
        "--dest-tls-verify=false",
    ]
    digest_file = servers.directory / "digest"
    subprocess.run(
        [*command, f"--digestfile={digest_file}", f"oci:{layout.path}:latest", f"docker://{servers.push_to}/{name}:latest"],
        check=True, timeout=60,
    )  # fmt: skip
    return digest_file.read_text().strip()


def test_a_registry_is_polled_at_once_and_when_somebody_asks(servers, namespace, running):
    first = push(servers, "polled", DISK)
    namespace.create(*servers.inputs())
    source = {"url": servers.registry.url("polled:latest"), "secretRef": "registry", "certConfigMap": "authority"}
    (made,) = namespace.create(cron("polled", {"registry": source}))
    document = namespace.wait("dataimportcron", "polled", "polled", has_digest(first), SLOW)
    result = found(document)
    assert (result.identity, result.architectures) == ("manifest", ("amd64", "arm64"))
    assert polled(document)
    name = poll_cron_job("polled", made["metadata"]["uid"])
    template = namespace.get("cronjob", name)
    assert template["spec"]["suspend"] is True
    namespace.wait_gone("job", f"initial-job-{name}", SLOW)
    second = push(servers, "polled", DISK + DISK)
    poll_now(namespace, "polled")
    namespace.wait("dataimportcron", "polled", "polled again", has_digest(second), SLOW)
    namespace.delete("dataimportcron", "polled")
    namespace.wait_gone("cronjob", name, SLOW)


def test_a_url_is_polled_by_its_checksum_file_and_by_its_etag(servers, namespace, running):
    servers.nginx.put("polls/disk.img", DISK)
    source = {"http": {"url": servers.nginx.url("polls/disk.img")}}
    namespace.create(cron("web", source))
    document = namespace.wait("dataimportcron", "web", "polled", polled, SLOW)
    assert found(document).identity == "etag"
    digest = hashlib.sha256(DISK).hexdigest()
    servers.nginx.put("polls/SHA256SUMS", f"{digest}  disk.img\n".encode())
    poll_now(namespace, "web")
    document = namespace.wait("dataimportcron", "web", "polled again", has_digest(f"sha256:{digest}"), SLOW)
    assert found(document).identity == "checksum file"


STORES = ("s3", "gcs")
IDENTITIES = {"s3": "etag", "gcs": "generation"}


def wait_offer(namespace, name, version):
    def offers(document):
        return document["spec"].get("source", {}).get("pvc", {}).get("name") == version

    namespace.wait("datasource", name, f"offers {version}", offers, SLOW)


@pytest.mark.parametrize("store", STORES)
def test_an_object_of_a_store_is_polled_imported_offered_and_bundled(
    cluster, servers, namespace, running, tmp_path, store
):
    put = {"s3": servers.put_s3, "gcs": servers.put_gcs}[store]
    contents = [disk(SIZE, seed=seed) for seed in (1, 2)]
    namespace.create(*servers.inputs())
    source, annotations = put("polls/disk.img", contents[0]), {"cdi.kubevirt.io/golden.hold": "false"}
    if store == "gcs":
        # Only the JSON API, which gs:// stands for, has generations.
        source = {"gcs": {"url": "gs://images/polls/disk.img"}}
        annotations["cdi.kubevirt.io/policy.endpoint"] = servers.gcs.origin
    body = cron(store, source, **annotations)
    body["spec"]["template"]["spec"]["storage"] |= {
        "storageClassName": "csi",
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
    }
    namespace.create(body)
    digests = []
    for content in contents:
        if digests:
            put("polls/disk.img", content)
            poll_now(namespace, store)
        document = namespace.wait(
            "dataimportcron", store, "polled", lambda one: desired(one) not in (None, *digests), SLOW
        )
        digests.append(desired(document))
        assert found(document).identity == IDENTITIES[store]
        version = cron_import(store, digests[-1])
        wait_offer(namespace, store, version)
        assert digest(cluster, namespace, version, "Filesystem", SIZE) == sha256(content)
    # A machine outside of the cluster reads no volumes, so the object itself is fetched again.
    commands = Cdi(namespace, tmp_path)
    assert f"{store}: sha256:" in commands("bundle", "create", "-o", "golden", store).stdout
    (one,) = json.loads(commands("bundle", "list", "golden", "-o", "json").stdout)
    assert (one["volume"], one["version"]["Digest"]) == (version, digests[-1])
    put("polls/disk.img", contents[0])
    gone = commands("bundle", "create", "-o", "again", store, status=3).stderr
    assert "error[VersionGone]" in gone


def test_a_poll_that_fails_says_so_keeps_the_digest_and_recovers(servers, namespace, running):
    path = servers.nginx.put("failing/disk.img", DISK)
    namespace.create(cron("failing", {"http": {"url": servers.nginx.url("failing/disk.img")}}))
    digest = annotation(namespace.wait("dataimportcron", "failing", "polled", polled, SLOW), "sourceDesiredDigest")
    path.unlink()
    poll_now(namespace, "failing")

    def reported(document):
        one = condition(document, "Polled")
        return one is not None and one["status"] == "False" and one["reason"] == "SourceNotFound"

    document = namespace.wait("dataimportcron", "failing", "reported", reported, SLOW)
    assert annotation(document, "sourceDesiredDigest") == digest
    assert "PollFailed" in {event["reason"] for event in namespace.events("DataImportCron", "failing")}
    servers.nginx.put("failing/disk.img", DISK + b"new")
    poll_now(namespace, "failing")
    document = namespace.wait(
        "dataimportcron", "failing", "polled again", lambda one: condition(one, "Polled") is None, SLOW
    )
    assert annotation(document, "sourceDesiredDigest") not in (None, digest)


def test_a_node_pulls_an_image_that_has_no_program(cluster, namespace, running, tmp_path):
    if cluster.layout is None:
        pytest.skip("someone else's nodes do not pull over plain HTTP")
    with registry(cluster.host_address, tmp_path) as place:
        cluster.allow_plain_registry(place)
        layout = OciLayout(tmp_path / "layout")
        layout.image([layout.layer({"disk/": b"", "disk/disk.img": DISK})], tag="latest")
        digest_file = tmp_path / "digest"
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
        subprocess.run(
            [*command, f"--digestfile={digest_file}", f"oci:{layout.path}:latest", f"docker://{place}/disk:latest"],
            check=True, timeout=60,
        )  # fmt: skip
        source = {"registry": {"url": f"docker://{place}/disk:latest", "pullMethod": "node"}}
        (made,) = namespace.create(cron("node", source))
        document = namespace.wait("dataimportcron", "node", "polled", polled, SLOW)
        assert annotation(document, "sourceDesiredDigest") == digest_file.read_text().strip()
        namespace.wait_gone("pod", poll_pod("node", made["metadata"]["uid"]), SLOW)
        absent = {"registry": {"url": f"docker://{place}/disk:absent", "pullMethod": "node"}}
        namespace.create(cron("absent", absent))
        document = namespace.wait(
            "dataimportcron", "absent", "reported", lambda one: condition(one, "Polled") is not None, SLOW
        )
        assert "failed to pull image" in condition(document, "Polled")["message"]


@pytest.mark.timeout(3600)
def test_many_crons_that_are_due_at_once_are_polled_a_few_at_a_time(servers, namespace, running):
    digest = push(servers, "many", DISK)
    namespace.create(*servers.inputs())
    source = {"url": servers.registry.url("many:latest"), "secretRef": "registry", "certConfigMap": "authority"}
    namespace.create(cron("first", {"registry": source}))
    namespace.wait("dataimportcron", "first", "polled", has_digest(digest), SLOW)
    before, at_once, ended = running.memory(), [], threading.Event()

    def count():
        while not ended.wait(1):
            jobs = namespace.get_all("job", "cdi.kubevirt.io/dataImportCron")
            at_once.append(sum(1 for job in jobs if not {"Complete", "Failed"} & set(conditions(job))))

    counting = threading.Thread(target=count)
    counting.start()
    try:
        namespace.apply(*(cron(f"many-{number:03}", {"registry": source}) for number in range(CRONS)))
        for number in range(CRONS):
            namespace.wait("dataimportcron", f"many-{number:03}", "polled", has_digest(digest), 3000)
    finally:
        ended.set()
        counting.join()
    assert 1 <= max(at_once) <= MAX_POLLS
    assert running.memory() - before <= MOST_MEMORY
