"""Tests of CDI and CDIConfig."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from cdi.api.configuration import CDIConfig
from cdi.api.installation import CDI
from cdi.api.validation import parse, validate
from cdi.reconcile.actions import ObjectRef
from cdi.reconcile.cdi.config import (
    ConfigFacts,
    active_cdi,
    adopts_claims,
    ignored_fields,
    problems,
    reconcile_config,
    renders_claims,
    resolve_config,
)
from cdi.reconcile.cdi.installation import Installed, reconcile_installation
from cdi.reconcile.settings import ResolvedConfig, WorkerPodConfig
from cdi.reconcile.storage.classes import StorageClass

NOW = 1_780_000_000.0
AUTHORITY = {"cdi.kubevirt.io/configAuthority": ""}
OWNER = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDI", "name": "cdi", "uid": "cdi-uid"}
DEFAULT = StorageClass(name="std", provisioner="p", annotations={"storageclass.kubernetes.io/is-default-class": "true"})
FAST = StorageClass(name="fast", provisioner="p")
CLASSES = (FAST, DEFAULT)


def cdi(config=None, *, annotations=None, status=None, **spec) -> CDI:
    body = {
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDI",
        "metadata": {"name": "cdi", "uid": "cdi-uid", "annotations": annotations or {}},
        "spec": spec if config is None else {"config": config, **spec},
    }  # fmt: skip
    if status is not None:
        body["status"] = status
    made = parse(body)
    assert isinstance(made, CDI)
    return made


def config(status=None, **spec) -> CDIConfig:
    body = {
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDIConfig",
        "metadata": {"name": "config", "uid": "config-uid", "resourceVersion": "7"}, "spec": spec,
    }  # fmt: skip
    if status is not None:
        body["status"] = status
    made = parse(body)
    assert isinstance(made, CDIConfig)
    return made


def settled(installation: CDI | None, facts: ConfigFacts = ConfigFacts()) -> CDIConfig:
    """Return the CDIConfig at the fixpoint, with the server's metadata."""
    created = reconcile_config(installation, None, facts).create
    assert created is not None
    body = json.loads(json.dumps(created))
    body["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    made = parse(body)
    assert isinstance(made, CDIConfig)
    assert validate(made) == ()
    again = reconcile_config(installation, made, facts)
    assert (again.create, again.update) == (None, None)
    return made


# --- effective configuration --------------------------------------------------------------------------------------


def test_the_webhook_for_claims_can_be_disabled():
    assert not resolve_config(None, config(webhookPvcRendering="Disabled")).renders_claims


def test_nothing_said_is_what_is_usual():
    assert resolve_config(None, None) == ResolvedConfig(
        overhead=Fraction(6, 100),
        renders_claims=True,
        pods=WorkerPodConfig(
            resources={"limits": {"cpu": "750m", "memory": "600M"}, "requests": {"cpu": "100m", "memory": "60M"}},
        ),
    )


def test_all_of_it_is_resolved():
    said = config(
        importProxy={"HTTPProxy": "http://p:1", "HTTPSProxy": "http://p:2", "noProxy": "x", "trustedCAProxy": "ca"},
        preallocation=True,
        insecureRegistries=["Registry.example:5000"],
        scratchSpaceStorageClass="fast",
        filesystemOverhead={"global": "0.1", "storageClass": {"fast": "0"}},
        imagePullSecrets=[{"name": "pull"}],
        podResourceRequirements={"limits": {"cpu": "2"}},
        logVerbosity=3,
    )
    place = {"nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "a", "operator": "Exists"}]}
    found = resolve_config(
        cdi(imagePullPolicy="Always", workload=place), said, CLASSES,
        namespace="ns", pods=WorkerPodConfig(image="i", pull_policy="Never"),
    )  # fmt: skip
    assert (found.proxy.http, found.proxy.https, found.proxy.no_proxy) == ("http://p:1", "http://p:2", "x")
    assert found.trusted_ca == ObjectRef(kind="ConfigMap", namespace="ns", name="ca")
    assert found.preallocation
    assert found.insecure_registries == {"registry.example:5000"}
    assert found.scratch_class == "fast"
    assert (found.overhead, found.overheads) == (Fraction(1, 10), {"fast": 0})
    assert found.pods == WorkerPodConfig(
        image="i", pull_policy="Always", pull_secrets=("pull",), placement=place, verbosity=3,
        resources={"limits": {"cpu": "2", "memory": "600M"}, "requests": {"cpu": "100m", "memory": "60M"}},
    )  # fmt: skip


def test_what_the_controller_was_told_counts_where_nothing_else_is_said():
    pods = WorkerPodConfig(
        image="i", pull_policy="Never", pull_secrets=("a",), placement={"nodeSelector": {"x": "y"}}, verbosity=5
    )
    found = resolve_config(cdi(), None, pods=pods).pods
    assert (found.pull_policy, found.pull_secrets, found.placement, found.verbosity) == (
        "Never", ("a",), {"nodeSelector": {"x": "y"}}, 5,
    )  # fmt: skip


def test_no_overhead_is_an_overhead():
    assert resolve_config(None, config(filesystemOverhead={"global": "0"})).overhead == 0


def test_values_that_mean_nothing_count_as_not_given_and_are_told():
    said = config(
        filesystemOverhead={"global": "7", "storageClass": {"fast": "x", "gone": "0.1"}},
        scratchSpaceStorageClass="gone",
        featureGates=["Wings"],
    )
    found = resolve_config(None, said, CLASSES)
    assert (found.overhead, found.overheads) == (Fraction(6, 100), {"gone": Fraction(1, 10)})
    assert found.scratch_class is None
    told = {problem.field for problem in problems(None, said, CLASSES)}
    assert told == {
        "spec.filesystemOverhead.global", "spec.filesystemOverhead.storageClass[fast]",
        "spec.filesystemOverhead.storageClass[gone]", "spec.scratchSpaceStorageClass", "spec.featureGates",
    }  # fmt: skip


def test_good_values_are_no_problem():
    said = {"filesystemOverhead": {"storageClass": {"fast": "0.1"}}, "scratchSpaceStorageClass": "fast",
            "featureGates": ["HonorWaitForFirstConsumer"]}  # fmt: skip
    assert problems(cdi(said), None, CLASSES) == ()


@pytest.mark.parametrize(
    ("asked", "limits", "requests"),
    [
        ({"requests": {"memory": "2G"}}, "2G", "2G"),
        ({"limits": {"memory": "10M"}}, "10M", "10M"),
        ({"requests": {"memory": "1G"}, "limits": {"memory": "2G"}}, "2G", "1G"),
    ],
)
def test_a_request_never_exceeds_its_limit(asked, limits, requests):
    found = resolve_config(None, config(podResourceRequirements=asked)).pods.resources
    assert (found["limits"]["memory"], found["requests"]["memory"]) == (limits, requests)


def test_devices_are_passed_on():
    said = config(podResourceRequirements={"claims": [{"name": "gpu"}]})
    assert resolve_config(None, said).pods.resources["claims"] == [{"name": "gpu"}]


def test_the_cdi_object_goes_before_cdiconfig_where_it_is_the_authority():
    said = config(preallocation=True)
    assert resolve_config(cdi(annotations=AUTHORITY), said).preallocation is False
    assert resolve_config(cdi({"preallocation": False}), said).preallocation is False
    assert resolve_config(cdi(), said).preallocation is True


def test_problems_name_the_object_that_counts():
    bad = {"filesystemOverhead": {"global": "7"}}
    assert [one.field for one in problems(cdi(bad), config(**bad))] == ["spec.config.filesystemOverhead.global"]


def test_the_oldest_cdi_counts():
    def at(name: str, when: str, *, going: bool = False) -> CDI:
        metadata = {"name": name, "creationTimestamp": when}
        if going:
            metadata["deletionTimestamp"] = when
        return CDI.model_validate({"metadata": metadata, "spec": {}})

    old, new = at("b", "2026-01-01T00:00:00Z"), at("a", "2026-02-01T00:00:00Z")
    assert active_cdi([new, old]) is old
    assert active_cdi([at("c", "2025-01-01T00:00:00Z", going=True), new]) is new
    assert active_cdi([]) is None


@pytest.mark.parametrize(("said", "on"), [(None, True), ("", True), ("Enabled", True), ("Disabled", False)])
def test_claims_are_completed_unless_that_is_disabled(said, on):
    assert renders_claims(None, config() if said is None else config(webhookPvcRendering=said)) is on


def test_claim_adoption_is_a_feature_gate():
    assert adopts_claims(None, config(featureGates=["DataVolumeClaimAdoption"]))
    assert not adopts_claims(None, config())


# --- CDIConfig ----------------------------------------------------------------------------------------------------


def test_cdiconfig_is_made_with_everything_that_clients_read():
    made = settled(None, ConfigFacts(storage_classes=CLASSES, owner=OWNER))
    assert made.metadata.name == "config"
    assert [one.name for one in made.metadata.owner_references or []] == ["cdi"]
    assert made.status is not None
    assert made.status.to_dict() == {
        "defaultPodResourceRequirements": {
            "limits": {"cpu": "750m", "memory": "600M"},
            "requests": {"cpu": "100m", "memory": "60M"},
        },
        "filesystemOverhead": {"global": "0.06", "storageClass": {"fast": "0.06", "std": "0.06"}},
        "importProxy": {"HTTPProxy": "", "HTTPSProxy": "", "noProxy": "", "trustedCAProxy": ""},
        "preallocation": False,
        "scratchSpaceStorageClass": "",
    }


def test_cdiconfig_is_kept_in_step_with_the_cdi_object():
    installation = cdi(
        {"preallocation": True, "uploadProxyURLOverride": "https://up", "imagePullSecrets": [{"name": "x"}]}
    )
    before = config(preallocation=False, scratchSpaceStorageClass="old")
    update = reconcile_config(installation, before, ConfigFacts()).update
    assert update is not None
    assert update["spec"] == installation.spec.config.to_dict()
    assert update["metadata"]["resourceVersion"] == "7"
    assert update["status"]["uploadProxyURL"] == "https://up"
    assert update["status"]["imagePullSecrets"] == [{"name": "x"}]
    assert update["status"]["preallocation"] is True
    settled(installation, ConfigFacts(storage_classes=CLASSES))


def test_without_an_authority_the_spec_is_left_alone():
    update = reconcile_config(cdi(), config(preallocation=True), ConfigFacts()).update
    assert update is not None
    assert update["spec"] == {"preallocation": True}


def test_a_route_to_the_upload_proxy_is_shown_unless_overridden():
    facts = ConfigFacts(upload_proxy_url="route.example", upload_proxy_ca="PEM")
    status = settled(None, facts).status
    assert status is not None
    assert (status.upload_proxy_url, status.upload_proxy_ca) == ("route.example", "PEM")
    over = settled(cdi({"uploadProxyURLOverride": "https://mine"}), facts).status
    assert over is not None
    assert over.upload_proxy_url == "https://mine"


def test_a_controller_that_has_not_looked_yet_takes_nothing_back():
    """Otherwise uploads during its start would find no proxy, or one that is not trusted."""
    known = ConfigFacts(upload_proxy_url="route.example", upload_proxy_ca="PEM")
    stored = settled(None, known)
    fresh = ConfigFacts(upload_proxy_known=False)
    assert reconcile_config(None, stored, fresh).update is None
    over = reconcile_config(cdi({"uploadProxyURLOverride": "https://mine"}), stored, fresh).update
    assert over is not None
    assert (over["status"]["uploadProxyURL"], over["status"]["uploadProxyCA"]) == ("https://mine", "PEM")
    looked = reconcile_config(None, stored, ConfigFacts()).update
    assert looked is not None
    assert not {"uploadProxyURL", "uploadProxyCA"} & set(looked["status"])


def test_the_status_shows_the_overhead_of_every_class():
    said = {"filesystemOverhead": {"global": "0.1", "storageClass": {"fast": "0.2", "gone": "0.3", "std": "bad"}}}
    plan = reconcile_config(cdi(said), config(), ConfigFacts(storage_classes=CLASSES))
    assert plan.update is not None
    assert plan.update["status"]["filesystemOverhead"] == {
        "global": "0.1", "storageClass": {"fast": "0.2", "std": "0.1"},
    }  # fmt: skip
    (event,) = plan.events
    assert (event.type, event.reason) == ("Warning", "InvalidConfiguration")
    assert "spec.config.filesystemOverhead.storageClass[std]" in event.message


def test_foreign_labels_and_metadata_stay():
    stored = settled(None).to_dict()
    stored["metadata"] |= {"labels": {"mine": "1"}, "finalizers": ["f"]}
    made = parse(stored)
    assert isinstance(made, CDIConfig)
    update = reconcile_config(None, made, ConfigFacts()).update
    assert update is not None
    assert update["metadata"]["labels"] == {"mine": "1", "app": "containerized-data-importer", "cdi.kubevirt.io": ""}
    assert update["metadata"]["finalizers"] == ["f"]


def test_a_cdiconfig_that_is_being_deleted_is_left_alone():
    stored = config().to_dict()
    stored["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    made = parse(stored)
    assert isinstance(made, CDIConfig)
    assert reconcile_config(cdi({"preallocation": True}), made, ConfigFacts()).update is None


# --- CDI ----------------------------------------------------------------------------------------------------------


def conditions(status) -> dict[str, tuple[str, str, str]]:
    return {one["type"]: (one["status"], one["reason"], one["message"]) for one in status["conditions"]}


def test_an_installation_that_works_says_so_as_kubevirt_reads_it():
    plan = reconcile_installation(
        cdi(annotations=AUTHORITY), active=True, installed=Installed(version="1.2"), found=(), now=NOW
    )
    assert plan.status is not None
    assert plan.status["phase"] == "Deployed"
    assert conditions(plan.status) == {
        "Available": ("True", "DeployCompleted", "Deployment Completed"),
        "Progressing": ("False", "DeployCompleted", ""),
        "Degraded": ("False", "DeployCompleted", ""),
    }
    assert {plan.status[f"{word}Version"] for word in ("observed", "operator", "target")} == {"1.2"}
    assert plan.actions == ()
    again = reconcile_installation(
        cdi(annotations=AUTHORITY, status=plan.status), active=True, installed=Installed(version="1.2"), found=(),
        now=NOW + 60,
    )  # fmt: skip
    assert again.status is None


def test_what_is_missing_is_told():
    installed = Installed(version="1", missing=("the webhooks do not answer",))
    plan = reconcile_installation(cdi(), active=True, installed=installed, found=(), now=NOW)
    assert plan.status is not None
    assert plan.status["phase"] == "Deploying"
    assert conditions(plan.status)["Available"] == ("False", "NotReady", "the webhooks do not answer.")
    assert conditions(plan.status)["Progressing"][0] == "True"


def test_what_was_deployed_stays_so():
    installed = Installed(version="1", missing=("x",))
    plan = reconcile_installation(
        cdi(status={"phase": "Deployed"}), active=True, installed=installed, found=(), now=NOW
    )
    assert plan.status is not None
    assert plan.status["phase"] == "Deployed"
    assert conditions(plan.status) == {
        "Available": ("False", "NotReady", "x."),
        "Progressing": ("False", "DeployCompleted", ""),
        "Degraded": ("True", "NotReady", "x."),
    }


def test_what_is_away_and_what_cannot_be_followed_are_both_told():
    bad = cdi({"filesystemOverhead": {"global": "7"}}, status={"phase": "Deployed"})
    installed, found = Installed(version="1", missing=("x",)), problems(bad, None)
    plan = reconcile_installation(bad, active=True, installed=installed, found=found, now=NOW)
    assert plan.status is not None
    degraded = conditions(plan.status)["Degraded"]
    assert degraded[:2] == ("True", "NotReady")
    assert degraded[2].startswith("x. ")
    assert "spec.config.filesystemOverhead.global" in degraded[2]
    assert len(plan.events) == 1
    stored = cdi({"filesystemOverhead": {"global": "7"}}, status=plan.status)
    back = reconcile_installation(stored, active=True, installed=Installed(version="1"), found=found, now=NOW + 5)
    assert back.status is not None
    assert conditions(back.status)["Degraded"][1] == "InvalidConfiguration"
    assert back.events == ()


def test_what_cannot_be_followed_degrades_and_is_told_once():
    bad = cdi({"filesystemOverhead": {"global": "7"}})
    found = problems(bad, None)
    plan = reconcile_installation(bad, active=True, installed=Installed(version="1"), found=found, now=NOW)
    assert plan.status is not None
    degraded = conditions(plan.status)["Degraded"]
    assert degraded[:2] == ("True", "InvalidConfiguration")
    assert "spec.config.filesystemOverhead.global" in degraded[2]
    assert conditions(plan.status)["Available"][0] == "True"
    assert [event.reason for event in plan.events] == ["InvalidConfiguration"]
    stored = cdi({"filesystemOverhead": {"global": "7"}}, status=plan.status)
    again = reconcile_installation(stored, active=True, installed=Installed(version="1"), found=found, now=NOW + 5)
    assert (again.status, again.events) == (None, ())


def test_what_has_no_effect_is_told():
    said = cdi(
        {"dataVolumeTTLSeconds": 5},
        infra={"nodeSelector": {"a": "b"}}, certConfig={"client": {"duration": "1h"}}, customizeComponents={},
    )  # fmt: skip
    assert ignored_fields(said) == ("spec.infra", "spec.config.dataVolumeTTLSeconds")
    plan = reconcile_installation(said, active=True, installed=Installed(version="1"), found=(), now=NOW)
    assert plan.status is not None
    status, _, message = conditions(plan.status)["Degraded"]
    assert status == "False"
    assert "spec.infra (set the chart's values" in message
    assert plan.events == ()


def test_an_installation_with_a_configuration_becomes_the_authority():
    plan = reconcile_installation(
        cdi({"preallocation": True}), active=True, installed=Installed(version="1"), found=(), now=NOW
    )
    (patch,) = plan.actions
    assert (patch.plural, patch.name, patch.uid, patch.annotations) == ("cdis", "cdi", "cdi-uid", AUTHORITY)


def test_a_second_installation_is_an_error():
    plan = reconcile_installation(cdi(), active=False, installed=Installed(version="1"), found=(), now=NOW)
    assert plan.status is not None
    assert plan.status["phase"] == "Error"
    assert "older CDI object" in conditions(plan.status)["Available"][2]
    stored = cdi(status=plan.status)
    again = reconcile_installation(stored, active=False, installed=Installed(version="1"), found=(), now=NOW + 5)
    assert again.status is None


def test_an_installation_that_is_being_deleted_is_left_alone():
    going = CDI.model_validate({"metadata": {"name": "cdi", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}})
    assert (
        reconcile_installation(going, active=True, installed=Installed(version="1"), found=(), now=NOW).status is None
    )
