"""Tests of the controller's metrics, and that rules, dashboard and documentation name no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cdi.api.errors import SourceNotFound
from cdi.api.kinds import (
    CDIS,
    CSI_DRIVERS,
    DATA_IMPORT_CRONS,
    DATA_VOLUMES,
    NODES,
    PODS,
    STORAGE_CLASSES,
    STORAGE_PROFILES,
    VOLUME_SNAPSHOT_CLASSES,
)
from cdi.controller.metrics import SUCCEEDED, Metrics
from cdi.server import webhooks
from cdi.server.proxy import metrics as proxy_metrics

ROOT = Path(__file__).parents[3]
OF_WORKERS = {"kubevirt_cdi_import_progress_total", "kubevirt_cdi_clone_progress_total"}
"""Metrics of worker pods (`cdi.worker.progress`)."""
GROUP = "cdi.kubevirt.io/v1beta1"


class Cluster(dict):
    """The caches: a list of objects for each resource."""

    def values_of(self, resource):
        return self.get(resource, [])


def metrics(cluster: dict | None = None) -> Metrics:
    return Metrics(Cluster(cluster or {}).values_of, version="1.2", waiting=lambda: 3, in_work=lambda: 2)


def told(subject: Metrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    text = generate_latest(subject.registry).decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def value(subject: Metrics, name: str, **labels: str) -> float | None:
    for found, number in told(subject).get(name, []):
        if labels.items() <= found.items():
            return number
    return None


# --- storage profiles -----------------------------------------------------------------------------------------------


def klass(name: str, provisioner: str = "csi.example", **annotations: str):
    return {"metadata": {"name": name, "annotations": annotations}, "provisioner": provisioner}


def profile(name: str, *sets: tuple[str, str], provisioner: str = "csi.example", clone: str = "snapshot"):
    return {
        "apiVersion": GROUP, "kind": "StorageProfile", "metadata": {"name": name}, "spec": {},
        "status": {
            "provisioner": provisioner, "storageClass": name, "cloneStrategy": clone,
            "claimPropertySets": [{"accessModes": [mode], "volumeMode": form} for mode, form in sets],
        },
    }  # fmt: skip


SNAPSHOTS = {VOLUME_SNAPSHOT_CLASSES: [{"metadata": {"name": "s"}, "driver": "csi.example"}]}
TWO_NODES = {NODES: [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}


def info(cluster: dict) -> dict[str, str]:
    ((labels, number),) = told(metrics(cluster))["kubevirt_cdi_storageprofile_info"]
    assert number == 1
    return labels


def test_the_profile_of_a_good_default_class():
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    assert info({
        STORAGE_CLASSES: [klass("a", **default)],
        STORAGE_PROFILES: [profile("a", ("ReadWriteMany", "Block"))],
        **SNAPSHOTS, **TWO_NODES,
    }) == {
        "storageclass": "a", "provisioner": "csi.example", "complete": "true", "default": "true",
        "virtdefault": "false", "rwx": "true", "smartclone": "true", "degraded": "false",
    }  # fmt: skip


def test_the_profile_of_an_unknown_class():
    virt = {"storageclass.kubevirt.io/is-default-virt-class": "true"}
    found = info({STORAGE_CLASSES: [klass("a", **virt)], STORAGE_PROFILES: [profile("a", clone="copy")]})
    assert (found["complete"], found["virtdefault"], found["rwx"], found["smartclone"], found["degraded"]) == (
        "false", "true", "false", "false", "true",
    )  # fmt: skip


def test_a_csi_clone_needs_the_driver():
    cluster = {STORAGE_CLASSES: [klass("a")], STORAGE_PROFILES: [profile("a", clone="csi-clone")]}
    assert info(cluster)["smartclone"] == "false"
    assert info({**cluster, CSI_DRIVERS: [{"metadata": {"name": "csi.example"}}]})["smartclone"] == "true"


def test_on_one_node_nothing_is_missed_without_sharing():
    cluster = {STORAGE_CLASSES: [klass("a")], STORAGE_PROFILES: [profile("a", ("ReadWriteOnce", "Block"))], **SNAPSHOTS}
    assert info({**cluster, **TWO_NODES})["degraded"] == "true"
    assert info({**cluster, NODES: TWO_NODES[NODES][:1]})["degraded"] == "false"


def test_provisioners_of_buckets_and_of_nothing_are_not_incomplete():
    for provisioner in ("openshift-storage.noobaa.io/obc", "kubernetes.io/no-provisioner"):
        found = info({
            STORAGE_CLASSES: [klass("a", provisioner)], STORAGE_PROFILES: [profile("a", provisioner=provisioner)],
        })  # fmt: skip
        assert found["complete"] == "true"


def test_a_profile_without_its_class_is_not_told():
    assert "kubevirt_cdi_storageprofile_info" not in told(metrics({STORAGE_PROFILES: [profile("a")]}))


def test_a_profile_that_cannot_be_read_hides_no_other():
    broken = {**profile("a"), "spec": []}
    cluster = {STORAGE_CLASSES: [klass("a"), klass("b")], STORAGE_PROFILES: [broken, profile("b")]}
    assert info(cluster)["storageclass"] == "b"


# --- DataVolumes ----------------------------------------------------------------------------------------------------


def volume(name: str, phase: str | None = None, *, restarts: int = 0, spec=None, namespace: str = "n"):
    status = {} if phase is None else {"status": {"phase": phase, "restartCount": restarts}}
    return {
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"source": {"http": {}}, "storage": {}} if spec is None else spec,
        **status,
    }


def pending(classes, *volumes) -> float | None:
    return value(
        metrics({STORAGE_CLASSES: list(classes), DATA_VOLUMES: list(volumes)}), "kubevirt_cdi_datavolume_pending"
    )


K8S = klass("k", **{"storageclass.kubernetes.io/is-default-class": "true"})
VIRT = klass("v", **{"storageclass.kubevirt.io/is-default-virt-class": "true"})


def test_volumes_that_wait_for_a_default_class_are_counted():
    new, waits = volume("new"), volume("waits", "Pending", spec={"pvc": {}})
    assert pending([], new, waits) == 2
    assert pending([klass("a")], new, waits) == 2
    assert pending([K8S], new, waits) == 0
    assert pending([VIRT], new, waits) == 0


def test_volumes_that_name_a_class_or_are_past_that_do_not_wait_for_one():
    named = volume("named", "Pending", spec={"storage": {"storageClassName": "gone"}})
    none = volume("none", "Pending", spec={"storage": {"storageClassName": ""}})
    assert pending([], named, none, volume("done", "Succeeded"), volume("runs", "ImportInProgress")) == 0


def test_an_archive_waits_for_the_default_of_kubernetes():
    archive = volume("a", "Pending", spec={"storage": {}, "contentType": "archive"})
    assert pending([VIRT], archive) == 1
    assert pending([K8S], archive) == 0


def test_volumes_are_counted_by_phase():
    subject = metrics({DATA_VOLUMES: [volume("a", "Succeeded"), volume("b", "Succeeded"), volume("c")]})
    assert value(subject, "cdi_datavolumes", phase="Succeeded") == 2
    assert value(subject, "cdi_datavolumes", phase="New") == 1


@pytest.mark.parametrize(
    ("spec", "operation"),
    [
        ({"source": {"http": {}}}, "import"),
        ({"source": {"upload": {}}}, "upload"),
        ({"source": {"pvc": {}}}, "clone"),
        ({"source": {"snapshot": {}}}, "clone"),
        ({"sourceRef": {"name": "x"}}, "clone"),
    ],
)
def test_restarts_are_told_of_what_is_under_way(spec, operation):
    subject = metrics({
        DATA_VOLUMES: [volume("a", "ImportInProgress", restarts=4, spec=spec), volume("b", "ImportInProgress"),
                       volume("c", "Succeeded", restarts=9)],
    })  # fmt: skip
    assert told(subject)["cdi_datavolume_restarts"] == [({"namespace": "n", "name": "a", "operation": operation}, 4)]


# --- DataImportCrons, the installation, pods ------------------------------------------------------------------------


def cron(name: str, up_to_date: str | None, *, remembered: str | None = None, explicit: str | None = None):
    conditions = [] if up_to_date is None else [{"type": "UpToDate", "status": up_to_date}]
    annotations = {"cdi.kubevirt.io/storage.import.storageClass": remembered} if remembered else {}
    storage = {"storageClassName": explicit} if explicit else {}
    return {
        "metadata": {"namespace": "n", "name": name, "annotations": annotations},
        "spec": {"template": {"spec": {"storage": storage}}},
        "status": {"conditions": conditions},
    }


def test_outdated_golden_images_are_counted():
    """A DataImportCron without any storage class is pending, which the alert leaves out."""
    subject = metrics({
        DATA_IMPORT_CRONS: [
            cron("fresh", "True"), cron("late", "False", remembered="fast"), cron("named", "False", explicit="fast"),
            cron("new", None, remembered="fast"), cron("waits", "False"),
        ],
    })  # fmt: skip
    assert {
        (found["namespace"], found["cron_name"], found["pending"]): number
        for found, number in told(subject)["kubevirt_cdi_dataimportcron_outdated"]
    } == {
        ("n", "fresh", "false"): 0, ("n", "late", "false"): 1, ("n", "named", "false"): 1,
        ("n", "new", "false"): 1, ("n", "waits", "true"): 1,
    }  # fmt: skip


def test_the_dates_of_versions_of_golden_images_are_exposed_while_their_volume_exists():
    versions = [
        {"name": "f-1", "deprecated": "1970-01-01T00:01:00Z", "endOfLife": "1970-01-01T00:02:00Z"},
        {"name": "f-2", "endOfLife": "1970-01-01T00:03:00Z", "removed": "1970-01-01T00:00:00Z"},
        {"name": "f-3", "deprecated": "soon"},
        {"name": "f-4"},
    ]
    body = {"metadata": {"namespace": "n", "name": "c"}, "status": {"versions": versions}}
    found = told(metrics({DATA_IMPORT_CRONS: [body]}))
    labels = {"namespace": "n", "cron_name": "c", "version": "f-1"}
    assert found["cdi_golden_image_deprecation_timestamp_seconds"] == [(labels, 60)]
    assert found["cdi_golden_image_end_of_life_timestamp_seconds"] == [(labels, 120)]


def installation(name: str, created: str, status: str | None, **metadata: str):
    conditions = [] if status is None else [{"type": "Available", "status": status}]
    return {"metadata": {"name": name, "creationTimestamp": created, **metadata}, "status": {"conditions": conditions}}


@pytest.mark.parametrize(
    ("installations", "number"),
    [
        ([], -1),
        ([installation("a", "1", None)], -1),
        ([installation("a", "1", "True")], 1),
        ([installation("a", "1", "False")], 0),
        ([installation("b", "2", "False"), installation("a", "1", "True")], 1),
        ([installation("a", "1", "False", deletionTimestamp="x")], -1),
    ],
)
def test_the_installation_is_ready_or_not_or_not_looked_at(installations, number):
    assert value(metrics({CDIS: installations}), "kubevirt_cdi_cr_ready") == number


def test_pods_are_counted_by_phase():
    subject = metrics({PODS: [{"status": {"phase": "Running"}}, {}]})
    assert value(subject, "cdi_worker_pods", phase="Running") == 1
    assert value(subject, "cdi_worker_pods", phase="Pending") == 1


# --- counters and histograms ----------------------------------------------------------------------------------------


def test_reconciles_are_timed_and_failures_named():
    subject = metrics()
    with subject.observe_reconcile("volume", trigger="pods"):
        pass
    with pytest.raises(SourceNotFound), subject.observe_reconcile("volume", trigger="pods"):
        raise SourceNotFound("no")
    assert value(subject, "cdi_reconcile_duration_seconds_count", kind="volume") == 2
    assert value(subject, "cdi_reconciles_total", kind="volume", trigger="pods") == 2
    assert value(subject, "cdi_reconcile_failures_total", kind="volume", code="SourceNotFound") == 1


def test_attempts_are_counted_by_outcome():
    subject = metrics()
    subject.count_attempt(SUCCEEDED)
    subject.count_attempt(SUCCEEDED)
    subject.count_attempt("WorkerLost")
    assert value(subject, "cdi_imports_total", outcome="Succeeded") == 2
    assert value(subject, "cdi_imports_total", outcome="WorkerLost") == 1


def test_the_queue_and_the_version_are_told():
    subject = metrics()
    assert value(subject, "cdi_queue_depth") == 3
    assert value(subject, "cdi_reconciles_in_progress") == 2
    assert value(subject, "cdi_build_info", version="1.2") == 1


def test_two_controllers_in_one_process_do_not_meet():
    first, second = metrics(), metrics()
    first.count_attempt(SUCCEEDED)
    assert value(second, "cdi_imports_total", outcome="Succeeded") is None


# --- rules, dashboard and documentation name existing metrics only --------------------------------------------------


def everything() -> set[str]:
    """Return the names of all series that the controller can expose."""
    golden = cron("c", "True")
    golden["status"]["versions"] = [
        {"name": "f", "deprecated": "2027-01-01T00:00:00Z", "endOfLife": "2027-06-01T00:00:00Z"}
    ]
    subject = metrics({
        STORAGE_CLASSES: [klass("a")], STORAGE_PROFILES: [profile("a")], DATA_IMPORT_CRONS: [golden],
        DATA_VOLUMES: [volume("dv", "ImportInProgress", restarts=1)], CDIS: [installation("a", "1", "True")], PODS: [{}],
    })  # fmt: skip
    subject.count_attempt(SUCCEEDED)
    with pytest.raises(SourceNotFound), subject.observe_reconcile("volume", trigger="pods"):
        raise SourceNotFound("no")
    return {name for name in told(subject) if not name.endswith("_created")}


def rules() -> list[dict]:
    document = yaml.safe_load((ROOT / "charts/cdi/files/rules.yaml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def names(query: str) -> set[str]:
    """Return the metrics in a PromQL query: words that are no functions, keywords or labels."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', " ", query)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    words = re.findall(r"[a-zA-Z_:][\w:]*(?!\w*\s*\()", bare)
    return {word for word in words if word not in {"and", "or", "unless", "bool", "offset", "by"}}


def queries() -> Iterator[str]:
    dashboard = json.loads((ROOT / "charts/cdi/files/dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def test_the_names_of_a_query_are_found():
    assert names('sum by(a, b) (rate(x_total{c="d_total"}[5m])) * on(e) group_left(f) y or on() vector(0) > 3') == {
        "x_total", "y",
    }  # fmt: skip


def test_the_dashboard_asks_for_what_there_is():
    known = everything() | recorded() | OF_WORKERS
    asked = set().union(*(names(query) for query in queries()))
    assert len(asked) > 10
    assert asked <= known


def test_the_dashboard_can_be_read_by_grafana():
    dashboard = json.loads((ROOT / "charts/cdi/files/dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    spots = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(spots) == len(set(spots))


def test_the_rules_ask_for_what_there_is():
    known = everything() | recorded()
    for rule in rules():
        assert names(rule["expr"]) <= known, rule


ALERTS = {
    "CDIOperatorDown", "CDINotReady", "CDIDataVolumeUnusualRestartCount", "CDIStorageProfilesIncomplete",
    "CDIDataImportCronOutdated", "CDINoDefaultStorageClass", "CDIMultipleDefaultVirtStorageClasses",
    "CDIDefaultStorageClassDegraded",
}  # fmt: skip


def test_the_alerts_are_those_of_kubevirts_cdi_and_say_what_to_do():
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    assert alerts.keys() == ALERTS
    for rule in alerts.values():
        assert rule["annotations"].keys() == {"summary", "description", "runbook", "runbook_url"}
        assert rule["annotations"]["runbook_url"].endswith(f"/runbooks/{rule['alert']}")
        assert rule["annotations"]["runbook"].startswith("1. ")
        assert rule["labels"].keys() == {
            "severity", "operator_health_impact", "kubernetes_operator_part_of", "kubernetes_operator_component",
        }  # fmt: skip


def test_the_recording_rules_have_the_names_of_kubevirts_cdi_new_and_old():
    assert recorded() == {
        "cluster:kubevirt_cdi_operator_up:sum",
        *(f"cluster:kubevirt_cdi_{operation}_pods_high_restart:count" for operation in OPERATIONS),
        "kubevirt_cdi_operator_up",
        *(f"kubevirt_cdi_{operation}_pods_high_restart" for operation in OPERATIONS),
        "kubevirt_cdi_incomplete_storageprofiles",
        "kubevirt_cdi_dataimportcron_outdated_aggregated",
        "kubevirt_cdi_operator_up_total",
        *(f"kubevirt_cdi_{operation}_dv_unusual_restartcount_total" for operation in OPERATIONS),
        "kubevirt_cdi_incomplete_storageprofiles_total",
        "kubevirt_cdi_dataimportcron_outdated_total",
    }


OPERATIONS = ("import", "upload", "clone")


def of_servers() -> set[str]:
    """Return the metrics of the API server and of the upload proxy."""
    families = [*webhooks.Metrics().registry.collect(), *proxy_metrics.Metrics().registry.collect()]
    return {f"{each.name}_total" if each.type == "counter" else each.name for each in families}


def test_the_page_names_every_metric_and_every_alert():
    page = (ROOT / "docs/reference/metrics.md").read_text()
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in everything() if not name.startswith("process_")}
    families |= {name for name in of_servers() if not name.startswith("process_")}
    for name in families | recorded() | OF_WORKERS | ALERTS:
        assert f"`{name}" in page, name
    documented = set(re.findall(r"`((?:kubevirt_)?cdi_\w+)", page))
    assert documented <= families | recorded() | OF_WORKERS
