"""What the pods of all roles have in common."""

from __future__ import annotations

import pytest

from cdi.reconcile.pods import roles
from cdi.reconcile.pods.roles import DataMount, PodRole, build_pod, pod_spec
from cdi.reconcile.settings import ResolvedConfig, WorkerPodConfig

ROLES = {name: role for name, role in vars(roles).items() if isinstance(role, PodRole)}
PODS = WorkerPodConfig(
    image="worker:1",
    pull_secrets=("login",),
    placement={"nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "gpu"}]},
)
CONFIG = ResolvedConfig(labels={"team": "storage"}, pods=PODS)


@pytest.fixture(params=ROLES)
def role(request):
    return ROLES[request.param]


def test_every_role_is_in_the_table():
    assert set(ROLES) == {
        "IMPORTER", "UPLOADER", "CLONE_TARGET", "CLONE_SOURCE", "PREPARATION", "SIZE_DETECTION", "POLL", "NODE_POLL",
        "PROOF", "RECORD_SIGNING",
    }  # fmt: skip


def test_every_role_keeps_to_the_restricted_standard(role):
    spec = pod_spec(role, PODS, owner="u")
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    users = {one.get("runAsUser") for one in (spec["securityContext"], container["securityContext"])}
    assert users == ({107} if role.user else {None})


def test_every_role_follows_the_settings(role):
    spec = pod_spec(role, PODS, owner="u")
    (container,) = spec["containers"]
    assert container["image"] == "worker:1"
    assert set(container["resources"]) == {"limits", "requests"}
    assert spec["imagePullSecrets"] == [{"name": "login"}]
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert spec["tolerations"] == [{"key": "gpu"}]
    labels = build_pod(role, CONFIG, spec, namespace="n", name="p", annotations={})["metadata"]["labels"]
    assert labels["team"] == "storage"
    assert labels["app"] == "containerized-data-importer"
    assert labels.get("cdi.kubevirt.io", "") == role.component


@pytest.mark.parametrize("block", [False, True])
def test_every_role_mounts_what_it_declares(role, block):
    data = DataMount(claim="a", block=block)
    extra = {"name": "extra", "mountPath": "/extra"}
    spec = pod_spec(role, PODS, owner="u", data=data, mounts=[extra], volumes=[{"name": "extra", "emptyDir": {}}])
    (container,) = spec["containers"]
    mounted = [one["name"] for one in (*container["volumeMounts"], *container.get("volumeDevices", ()))]
    assert sorted(mounted) == sorted(one["name"] for one in spec["volumes"])
    claim = spec["volumes"][0]["persistentVolumeClaim"]
    assert claim == ({"claimName": "a", "readOnly": True} if role.read_only else {"claimName": "a"})
