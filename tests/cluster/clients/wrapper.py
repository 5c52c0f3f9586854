"""Courses with openshift-python-wrapper, as test suites of OpenShift Virtualization have them.

    python wrapper.py COURSE NAMESPACE [ARGUMENT ...]

runs one of the functions below in the environment of the clients. It prints what the classes returned as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ocp_resources.cdi import CDI
from ocp_resources.cdi_config import CDIConfig
from ocp_resources.data_import_cron import DataImportCron
from ocp_resources.data_source import DataSource
from ocp_resources.datavolume import DataVolume
from ocp_resources.resource import NamespacedResource, ResourceEditor, get_client
from ocp_resources.storage_profile import StorageProfile
from ocp_resources.upload_token_request import UploadTokenRequest
from timeout_sampler import TimeoutSampler

_TIMEOUT = 240  # seconds for an awaited state
_READY = DataVolume.Condition.Type.READY
_TRUE = DataVolume.Condition.Status.TRUE


def _volume(namespace: str, name: str, storage_class: str = "csi", **more: Any) -> DataVolume:
    return DataVolume(
        client=get_client(), name=name, namespace=namespace, api_name="storage", storage_class=storage_class,
        size="24Mi", access_modes=DataVolume.AccessMode.RWO, volume_mode=DataVolume.VolumeMode.FILE, **more,
    )  # fmt: skip


def _reference(namespace: str) -> DataSource:
    source = {"pvc": {"name": "golden", "namespace": namespace}}
    return DataSource(client=get_client(), name="golden", namespace=namespace, source=source)


def create(namespace: str, url: str) -> dict[str, Any]:
    """Import a golden image, and clone it through a DataSource."""
    golden = _volume(namespace, "golden", source_dict={"http": {"url": url}}).deploy()
    golden.wait_for_dv_success(timeout=_TIMEOUT)
    reference = _reference(namespace).deploy()
    reference.wait_for_condition(condition=_READY, status=_TRUE, timeout=_TIMEOUT)
    at = {"kind": reference.kind, "name": reference.name, "namespace": namespace}
    machine = _volume(namespace, "machine", source_ref=at).deploy()
    machine.wait_for_dv_success(timeout=_TIMEOUT)
    for each in (golden, machine):
        each.wait_for_condition(condition=_READY, status=_TRUE, timeout=_TIMEOUT)
        each.wait_for_condition(condition=DataVolume.Condition.Type.BOUND, status=_TRUE, timeout=_TIMEOUT)
    return {
        "source": reference.source.name,
        "populated": golden.pvc.use_populator,
        "bound": golden.pvc.bound(),
        "status": machine.status,
    }


def delete(namespace: str) -> dict[str, Any]:
    """Delete what `create` made; a DataVolume counts as deleted once its claim is."""
    return {
        "machine": _volume(namespace, "machine").clean_up(),
        "golden": _volume(namespace, "golden").clean_up(),
        "reference": _reference(namespace).clean_up(),
    }


def fail(namespace: str, url: str) -> dict[str, Any]:
    """Import an image that does not exist, and wait for the condition that says so."""
    with _volume(namespace, "absent", source_dict={"http": {"url": url}}) as volume:
        kind, status = DataVolume.Condition.Type.RUNNING, DataVolume.Condition.Status.FALSE
        # The wait_for_condition of a DataVolume would wait for the volume's success first.
        for message in TimeoutSampler(
            wait_timeout=_TIMEOUT, sleep=1, func=lambda: volume.get_condition_message(kind, status)
        ):
            if "404" in message:
                return {"status": volume.status, "message": message}
    raise AssertionError  # the sampler raises its own error


def generated(namespace: str) -> dict[str, Any]:
    """Create a DataImportCron, and the sources of populators, whose classes are those of the API's kinds."""
    template = {
        "spec": {
            "source": {"registry": {"url": "docker://registry.example/image:1"}},
            "storage": {"resources": {"requests": {"storage": "24Mi"}}},
        }
    }
    with DataImportCron(
        client=get_client(), name="nightly", namespace=namespace, managed_data_source="nightly",
        schedule="0 0 1 1 *", template=template, retention_policy="None", imports_to_keep=2,
    ) as cron:  # fmt: skip
        made = cron.instance.to_dict()["spec"]
    sources = {}
    for kind, spec in (
        ("VolumeImportSource", {"source": {"blank": {}}}),
        ("VolumeUploadSource", {}),
        ("VolumeCloneSource", {"source": {"kind": "PersistentVolumeClaim", "name": "golden"}}),
    ):
        # The wrapper has no class for these kinds; its users declare one so.
        declared = type(kind, (NamespacedResource,), {"api_group": NamespacedResource.ApiGroup.CDI_KUBEVIRT_IO})
        metadata = {"name": "source", "namespace": namespace}
        body = {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": kind, "metadata": metadata, "spec": spec}
        with declared(client=get_client(), kind_dict=body, name="source", namespace=namespace) as source:
            sources[kind] = source.instance.to_dict()["spec"]
    return {"cron": made, "sources": sources}


def request_token(namespace: str) -> dict[str, Any]:
    """Create a DataVolume for an upload, and request a token for it."""
    volume = _volume(namespace, "wrapper", source_dict={"upload": {}}).deploy()
    volume.wait_for_status(status=DataVolume.Status.UPLOAD_READY, timeout=_TIMEOUT)
    request = UploadTokenRequest(client=get_client(), name="wrapper", namespace=namespace, pvc_name=volume.pvc.name)
    token = request.create().status.token
    # A request is not stored: its clean-up finds nothing to delete.
    return {"token": token, "prime": volume.pvc.prime_pvc.exists is not None, "cleaned": request.clean_up()}


def configure(_namespace: str, storage_class: str) -> dict[str, Any]:
    """Change the configuration and a storage profile, and read back what the controller made of it."""
    cdi = CDI(client=get_client(), name="cdi")
    cdi.wait_for_status(status=CDI.Status.DEPLOYED, timeout=_TIMEOUT)
    cdi.wait_for_condition(condition=CDI.Condition.AVAILABLE, status=CDI.Condition.Status.TRUE, timeout=_TIMEOUT)
    config = CDIConfig(client=get_client(), name="config")
    profile = StorageProfile(client=get_client(), name=storage_class)
    profile.wait(timeout=_TIMEOUT)
    url = "uploads.example.org"
    sets = [{"accessModes": ["ReadWriteMany"], "volumeMode": "Block"}]
    patches = {
        cdi: {"spec": {"config": {"uploadProxyURLOverride": url}}},
        profile: {"spec": {"claimPropertySets": sets, "cloneStrategy": "copy"}},
    }
    with ResourceEditor(patches=patches):
        changed = config.wait_until_upload_url_changed(uploadproxy_url=url, timeout=_TIMEOUT)
        for sample in profile.watcher(timeout=_TIMEOUT):
            # The profile's first state may have no status yet.
            if sample["raw_object"].get("status", {}).get("cloneStrategy") == "copy":
                break
        return {
            "changed": changed,
            "url": config.upload_proxy_url,
            "modes": profile.first_claim_property_set_access_modes(),
            "mode": profile.first_claim_property_set_volume_mode(),
            "strategy": profile.clone_strategy,
        }


COURSES = {each.__name__: each for each in (create, delete, fail, generated, request_token, configure)}

if __name__ == "__main__":
    # The wrapper logs to standard output too.
    print(json.dumps(COURSES[sys.argv[1]](*sys.argv[2:])))
