"""The chart's network policies: which of the control plane, worker pods and others reach each other.

The test cluster's network enforces no policies, so their effect is computed here as Kubernetes defines it: a pod
selected by a policy for a direction is isolated in it except for what some policy allows.
"""

import json
from dataclasses import dataclass

import pytest

from cdi.api.names import (
    COMMON_LABELS,
    COMPONENT_CLONER,
    COMPONENT_IMPORTER,
    COMPONENT_UPLOAD_SERVER,
    GROUP,
    LABEL_COMPONENT,
    LABEL_PROMETHEUS,
)
from cdi.api.peer import PORT as COPY_PORT
from cdi.api.upload_protocol import SERVER_PORT
from cdi.controller.worker_tracker import PROGRESS_PORT
from tests.cluster.test_chart import find, helm, render, selects  # noqa: F401  fixtures

SERVED = {"networkPolicy": {"workers": {"namespaces": ["golden", "machines"]}}}
MONITORED = {
    "networkPolicy": {
        **SERVED["networkPolicy"],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    }
}


@dataclass(frozen=True)
class Pod:
    namespace: str
    labels: dict


def worker(namespace, component):
    return Pod(namespace, {**COMMON_LABELS, LABEL_COMPONENT: component, LABEL_PROMETHEUS: "true"})


def of_the_release(documents, deployment):
    made = find(documents, "Deployment", deployment)
    return Pod(made["metadata"]["namespace"], made["spec"]["template"]["metadata"]["labels"])


IMPORTER = worker("machines", COMPONENT_IMPORTER)
RECEIVER = worker("machines", COMPONENT_UPLOAD_SERVER)
READER = worker("golden", COMPONENT_CLONER)
NEIGHBOUR = Pod("machines", {"app": "web"})
STRANGER = Pod("elsewhere", {"app": "web"})
PROMETHEUS = Pod("monitoring", {"app": "prometheus"})
NAMES = Pod("kube-system", {"k8s-app": "kube-dns"})


def is_peer(peer, pod, namespace):
    if "ipBlock" in peer:
        return False  # an ipBlock does not match pods reliably in every network
    if "namespaceSelector" in peer:
        there = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": pod.namespace})
    else:
        there = pod.namespace == namespace
    return there and selects(peer.get("podSelector", {}), pod.labels)


def allows(documents, direction, pod, other, port):
    """Return whether the policies of `pod` allow the connection."""
    side = {"Ingress": "from", "Egress": "to"}[direction]
    about = [
        each["spec"]
        for each in documents
        if each["kind"] == "NetworkPolicy"
        and each["metadata"]["namespace"] == pod.namespace
        and direction in each["spec"]["policyTypes"]
        and selects(each["spec"]["podSelector"], pod.labels)
    ]
    rules = [rule for spec in about for rule in spec.get(direction.lower(), [])]
    return not about or any(
        ("ports" not in rule or port in [each["port"] for each in rule["ports"]])
        and (side not in rule or any(is_peer(peer, other, pod.namespace) for peer in rule[side]))
        for rule in rules
    )


def reaches(documents, pod, other, port):
    return allows(documents, "Egress", pod, other, port) and allows(documents, "Ingress", other, pod, port)


def test_a_clones_reader_reaches_its_target_and_nobody_else(render):  # noqa: F811
    documents = render(SERVED)
    assert reaches(documents, READER, RECEIVER, COPY_PORT)
    assert reaches(documents, READER, NAMES, 53)
    assert not reaches(documents, READER, RECEIVER, SERVER_PORT)
    for other in (NEIGHBOUR, STRANGER, IMPORTER, NAMES):
        assert not reaches(documents, READER, other, COPY_PORT)
        assert not reaches(documents, READER, other, 443)
    for other in (NEIGHBOUR, STRANGER, IMPORTER, of_the_release(documents, "cdi-uploadproxy")):
        assert not reaches(documents, other, RECEIVER, COPY_PORT)


def test_an_upload_server_is_reached_by_the_proxy_and_reaches_nobody(render):  # noqa: F811
    documents = render(SERVED)
    assert reaches(documents, of_the_release(documents, "cdi-uploadproxy"), RECEIVER, SERVER_PORT)
    for other in (NEIGHBOUR, STRANGER, IMPORTER, READER, of_the_release(documents, "cdi-apiserver")):
        assert not reaches(documents, other, RECEIVER, SERVER_PORT)
    for other in (NEIGHBOUR, STRANGER, NAMES, READER):
        for port in (53, 443, COPY_PORT, SERVER_PORT):
            assert not reaches(documents, RECEIVER, other, port)


def test_the_controller_asks_every_worker_for_its_progress(render):  # noqa: F811
    documents = render(SERVED)
    controller = of_the_release(documents, "cdi-deployment")
    for pod in (IMPORTER, RECEIVER, READER):
        assert reaches(documents, controller, pod, PROGRESS_PORT)
        assert not reaches(documents, NEIGHBOUR, pod, PROGRESS_PORT)
        # A pod with the same labels in another namespace.
        assert not reaches(documents, Pod("elsewhere", controller.labels), pod, PROGRESS_PORT)
    # The chart cannot know where images come from.
    assert reaches(documents, IMPORTER, STRANGER, 443)


def test_a_poll_pod_connects_anywhere_and_accepts_no_connection(render):  # noqa: F811
    documents = render()
    poller = Pod("system", {f"{GROUP}/dataImportCronPoller": ""})
    for other in (STRANGER, NAMES, NEIGHBOUR):
        assert reaches(documents, poller, other, 443)
        assert not reaches(documents, other, poller, 443)
    assert not reaches(documents, of_the_release(documents, "cdi-deployment"), poller, PROGRESS_PORT)


def test_metrics_of_workers_are_read_by_those_who_are_named(render):  # noqa: F811
    for pod in (IMPORTER, RECEIVER, READER):
        assert not reaches(render(SERVED), PROMETHEUS, pod, PROGRESS_PORT)
        assert reaches(render(MONITORED), PROMETHEUS, pod, PROGRESS_PORT)
        assert not reaches(render(MONITORED), NEIGHBOUR, pod, PROGRESS_PORT)


def test_beside_another_only_the_namespaces_that_are_served_count(render):  # noqa: F811
    values = {**SERVED, "alongside": {"namespaces": ["golden", "machines"]}}
    documents = render(values, release="second", namespace="second")
    assert reaches(documents, READER, RECEIVER, COPY_PORT)
    assert reaches(documents, of_the_release(documents, "second-deployment"), RECEIVER, PROGRESS_PORT)
    assert not reaches(documents, worker("elsewhere", COMPONENT_CLONER), RECEIVER, COPY_PORT)
    # The upload proxy belongs to the other installation, and so does the policy that admits it.
    assert not reaches(documents, Pod("second", {"app.kubernetes.io/component": "uploadProxy"}), RECEIVER, SERVER_PORT)


def test_there_are_none_where_none_are_asked_for(render):  # noqa: F811
    def policies(values):
        return {each["metadata"]["namespace"] for each in render(values) if each["kind"] == "NetworkPolicy"}

    assert policies({}) == {"system"}
    assert policies(SERVED) == {"system", "golden", "machines"}
    assert policies({"networkPolicy": {**SERVED["networkPolicy"], "enabled": False}}) == set()


@pytest.mark.parametrize("values", [SERVED, MONITORED], ids=["served", "monitored"])
def test_the_api_server_takes_the_policies(render, namespace, values):  # noqa: F811
    place = namespace.namespace
    made = {"networkPolicy": {**values["networkPolicy"], "workers": {"namespaces": [place]}}}
    documents = [each for each in render(made, namespace=place) if each["kind"] == "NetworkPolicy"]
    assert len(documents) == 8
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    namespace.run("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f-", given=listed)
