"""The controller as a process: killed, stopped, with replicas, and beside another installation."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request

import pytest

from tests.cluster.cdi import Controller, controller
from tests.cluster.volumes import (
    MIB,
    SLOW,
    data_volume,
    digest,
    disk,
    left_behind,
    qcow2,
    sha256,
    wait_phase,
)
from tests.faults.server import Fault, FaultServer

KILLS = 4
VOLUMES = 20


@pytest.fixture(scope="module")
def server(cluster):
    with FaultServer(host=cluster.host_address) as server:
        yield server


def lease(kubectl, prefix="cdi"):
    return kubectl.get("lease", f"{prefix}-controller")["spec"]


def wait_clean(kubectl) -> None:
    until = time.monotonic() + SLOW
    while found := left_behind(kubectl):
        assert time.monotonic() < until, found
        time.sleep(0.2)


def test_it_says_how_it_is_and_counts(cluster, namespace) -> None:
    with controller(cluster, namespace) as running:
        assert running.get("/healthz") == (200, "ok\n")
        assert running.get("/readyz") == (200, "ok\n")
        namespace.create(data_volume("d", {"blank": {}}, "csi"))
        wait_phase(namespace, "d", "Succeeded")
        status, text = running.get("/metrics")
        assert status == 200
        assert 'cdi_datavolumes{phase="Succeeded"} 1.0' in text
        assert 'cdi_reconcile_duration_seconds_count{kind="volume"}' in text
        assert 'cdi_imports_total{outcome="Succeeded"} 1.0' in text
        line = running.wait_line("attempt started")
        assert (line["key"], line["attempt"]) == (f"volume {namespace.namespace}/d", 1)


def test_metrics_are_read_with_the_token_of_a_permitted_account(cluster, namespace) -> None:
    """The API server reviews tokens and permissions; nothing serves metrics without them."""
    name = f"metrics-{namespace.namespace}"
    wide = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
    tokens = {}
    for account in ("reader", "other"):
        namespace.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}})
        tokens[account] = namespace.run("create", "token", account, "--duration=1h").strip()
    subject = {"kind": "ServiceAccount", "namespace": namespace.namespace, "name": "reader"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    cluster.kubectl.create(
        {**wide, "kind": "ClusterRole", "rules": [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]},
        {**wide, "kind": "ClusterRoleBinding", "roleRef": role, "subjects": [subject]},
    )
    try:
        with controller(cluster, namespace, "--metrics-port=0") as running:
            port = running.wait_line("serving metrics")["port"]

            def read(token: str | None) -> tuple[int, str]:
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                request = urllib.request.Request(f"https://127.0.0.1:{port}/metrics", headers=headers)
                try:
                    with urllib.request.urlopen(request, context=ssl._create_unverified_context()) as answer:
                        return answer.status, answer.read().decode()
                except urllib.error.HTTPError as error:
                    return error.code, error.read().decode()

            status, text = read(tokens["reader"])
            assert status == 200
            assert "cdi_build_info" in text
            denied = f"system:serviceaccount:{namespace.namespace}:other"
            assert read(tokens["other"]) == (403, f"Authorization denied for user {denied}\n")
            for token in (None, "none", tokens["reader"][:-4] + "AAAA"):
                assert read(token) == (401, "Unauthorized\n")
            assert running.get("/metrics")[0] == 404
            assert running.get("/healthz") == (200, "ok\n")
    finally:
        for kind in ("clusterrolebinding", "clusterrole"):
            cluster.kubectl.delete(kind, name)


def test_it_writes_nothing_that_is_so_already(cluster, namespace) -> None:
    with controller(cluster, namespace) as running:
        namespace.create(data_volume("d", {"blank": {}}, "csi"), data_volume("e", {"blank": {}}, "local"))
        for name in ("d", "e"):
            wait_phase(namespace, name, "Succeeded")
        wait_clean(namespace)
        kinds = ("datavolumes", "persistentvolumeclaims", "volumeimportsources")

        def versions():
            return {
                (kind, each["metadata"]["name"]): each["metadata"]["resourceVersion"]
                for kind in kinds
                for each in namespace.get_all(kind)
            }

        before = versions()
        running.stop()
        running.start()
        # This DataVolume is last in the work queue, so every other object has been reconciled when it is done.
        namespace.create(data_volume("f", {"blank": {}}, "csi"))
        wait_phase(namespace, "f", "Succeeded")
        after = versions()
        assert {key: after.get(key) for key in before} == before


def test_asked_to_stop_it_ends_well_and_lets_the_next_one_lead(cluster, namespace) -> None:
    with controller(cluster, namespace) as running:
        assert lease(namespace)["holderIdentity"]
        assert running.stop() == 0
        # The next leader need not wait for the Lease to expire.
        assert (lease(namespace)["holderIdentity"], lease(namespace)["leaseDurationSeconds"]) == ("", 1)
        assert running.lines()[-1]["message"] == "stopping"
        running.start()


def test_a_second_one_waits_and_takes_over_when_the_first_is_killed(cluster, namespace, cdi_image) -> None:
    with controller(cluster, namespace) as first:
        second = Controller(cluster, namespace.namespace, cdi_image)
        try:
            second.begin()
            second.wait_line("serving")
            assert second.get("/readyz") == (200, "ok\n")
            namespace.create(data_volume("d", {"blank": {}}, "csi"))
            wait_phase(namespace, "d", "Succeeded")
            assert not [line for line in second.lines() if line["message"] == "caches are synchronized"]
            first.kill()
            namespace.create(data_volume("e", {"blank": {}}, "csi"))
            wait_phase(namespace, "e", "Succeeded")
            second.wait_line("caches are synchronized")
        finally:
            second.close()


def test_beside_another_installation_it_acts_on_its_own_only(cluster, namespace) -> None:
    with controller(cluster, namespace, "--selector=team=ours"):
        namespace.create(data_volume("theirs", {"blank": {}}, "csi"))
        for storage_class in ("csi", "local"):
            name = f"ours-{storage_class}"
            namespace.create(data_volume(name, {"blank": {}}, storage_class, labels={"team": "ours"}))
            wait_phase(namespace, name, "Succeeded")
        assert "status" not in namespace.get("datavolume", "theirs")
        wait_clean(namespace)
        claims = {each["metadata"]["name"] for each in namespace.get_all("persistentvolumeclaims")}
        assert claims == {"ours-csi", "ours-local"}


def test_two_in_one_namespace_have_nothing_in_common(cluster, namespace) -> None:
    """Neither waits for the other's Lease or uses its key and certificate authorities."""
    with (
        controller(cluster, namespace, "--selector=team=first") as first,
        controller(cluster, namespace, "--selector=team=second", "--prefix=second"),
    ):
        assert first.get("/readyz") == (200, "ok\n")
        for team in ("first", "second"):
            namespace.create(data_volume(team, {"blank": {}}, "csi", labels={"team": team}))
        for team in ("first", "second"):
            wait_phase(namespace, team, "Succeeded")
        assert lease(namespace)["holderIdentity"] != lease(namespace, "second")["holderIdentity"]
        keys = [f"{prefix}-api-signing-key" for prefix in ("cdi", "second")]
        found = [namespace.wait("secret", key, "made", lambda it: it.get("data"), SLOW)["data"] for key in keys]
        assert found[0] != found[1]


def test_killed_again_and_again_it_fills_every_volume_and_leaves_nothing(cluster, namespace, server, tmp_path) -> None:
    content = {f"d{number}": disk(2 * MIB, seed=number) for number in range(VOLUMES)}
    with controller(cluster, namespace, "--identity=the-pod") as running:
        for number, (name, each) in enumerate(content.items()):
            image = qcow2(each, tmp_path)
            url = server.put(f"/{name}.qcow2", image, faults=[Fault(drip=(262_144, 0.3))] * 4)
            storage_class = ("csi", "local")[number % 2]
            mode = ("Filesystem", "Block")[number // 2 % 2]
            source = {"http": {"url": url, "checksum": f"sha256:{sha256(image)}"}}
            namespace.create(data_volume(name, source, storage_class, mode=mode, size="16Mi"))
        for _ in range(KILLS):
            time.sleep(5)
            running.kill()
            running.start()
        for name in content:
            wait_phase(namespace, name, "Succeeded", patience=2 * SLOW)
        wait_clean(namespace)
        for number, (name, each) in enumerate(content.items()):
            mode = ("Filesystem", "Block")[number // 2 % 2]
            assert digest(cluster, namespace, name, mode, len(each)) == sha256(each)
