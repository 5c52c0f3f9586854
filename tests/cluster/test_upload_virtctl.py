"""The requests of ``virtctl image-upload`` in their order, as the contract specifies them (sections 7 and 10).

``test_upload_replaced.py`` runs the program itself; this module also covers older builds.
"""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster.kubectl import KubectlError
from tests.cluster.upload_api import TIMEOUT
from tests.cluster.upload_release import PREFIX, Uploads, annotations
from tests.cluster.volumes import IMMEDIATE, MIB, SLOW, disk, qcow2

pytestmark = pytest.mark.timeout(TIMEOUT)
TARGET, PHASE, READY = (f"{PREFIX}storage.{name}" for name in ("upload.target", "pod.phase", "pod.ready"))
POPULATED, PRIME = f"{PREFIX}storage.usePopulator", f"{PREFIX}storage.populator.pvcPrime"
TRIES = 5


class VirtctlError(Exception):
    """virtctl ends with this message."""


@dataclass(kw_only=True)
class Virtctl:
    """One invocation."""

    uploads: Uploads
    name: str
    size: str = "24Mi"
    storage_class: str = "csi"
    block: bool = False
    force_bind: bool = False
    versions: tuple[str, ...] = ("/v1beta1", "/v1beta1")
    """API versions of the first path, and of the fallback if it is unknown; builds differ."""
    token: str | None = None
    slept: int = 0

    def upload_dv(self, content: bytes) -> None:
        """Run ``image-upload dv NAME``."""
        if (claim := self._existing()) is None:
            self._kubectl.create(self._data_volume())
        else:
            self._check(self._of_existing(claim))
        self._poll(self._dv_ready)
        self._send(content)
        self._poll(self._done)

    def upload_pvc(self, content: bytes) -> None:
        """Run ``image-upload pvc NAME``."""
        if (claim := self._existing()) is None:
            self._kubectl.create(self._claim())
        else:
            self._check(claim)
        self._poll(self._pvc_ready)
        self._send(content)
        self._poll(self._done)

    # --- Manifests ------------------------------------------------------------------------------------------------

    def _spec(self) -> dict[str, Any]:
        block = {"volumeMode": "Block"} if self.block else {}
        return {
            "accessModes": ["ReadWriteOnce"], "storageClassName": self.storage_class,
            "resources": {"requests": {"storage": self.size}}, **block,
        }  # fmt: skip

    def _metadata(self, **annotations: str) -> dict[str, Any]:
        bind = {IMMEDIATE: ""} if self.force_bind else {}
        return {"name": self.name, "annotations": {**annotations, **bind}}

    def _data_volume(self) -> dict[str, Any]:
        return {
            "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": self._metadata(),
            "spec": {"source": {"upload": {}}, "contentType": "kubevirt", "storage": self._spec()},
        }  # fmt: skip

    def _claim(self) -> dict[str, Any]:
        metadata = self._metadata(**{TARGET: "", f"{PREFIX}storage.contentType": "kubevirt"})
        metadata["labels"] = {"cdi.kubevirt.io/applyStorageProfile": "true"}
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": self._spec()}

    # --- Existing objects -----------------------------------------------------------------------------------------

    @property
    def _kubectl(self):
        return self.uploads.work

    def _existing(self):
        try:
            return self._kubectl.get("persistentvolumeclaim", self.name)
        except KubectlError:
            return None

    def _of_existing(self, claim):
        """Return the claim that an upload into an existing DataVolume fills."""
        volume = self._kubectl.get("datavolume", self.name)
        if volume["metadata"].get("annotations", {}).get(POPULATED) != "true":
            return claim
        if claim["status"].get("phase") == "Bound":
            raise VirtctlError(f"PVC {self.name} already successfully populated")
        return self._kubectl.get("persistentvolumeclaim", claim["metadata"]["annotations"][PRIME])

    def _check(self, claim) -> None:
        found = claim["metadata"].get("annotations", {})
        if found.get(PHASE) == "Succeeded":
            raise VirtctlError(f"PVC {self.name} already successfully imported/cloned/updated")
        if TARGET not in found:
            raise VirtctlError(f"PVC {self.name} not available for upload")

    # --- Polling --------------------------------------------------------------------------------------------------

    def _poll(self, ready) -> None:
        until = time.monotonic() + SLOW
        while not ready():
            assert time.monotonic() < until, (ready.__name__, self._kubectl.get("persistentvolumeclaim", self.name))
            time.sleep(2)

    def _dv_ready(self) -> bool:
        phase = self._kubectl.get("datavolume", self.name).get("status", {}).get("phase")
        if phase in {"WaitForFirstConsumer", "PendingPopulation"} and not self.force_bind:
            raise VirtctlError(f"cannot upload to DataVolume in {phase} phase")
        return phase == "UploadReady" or self._look_at_events()

    def _pvc_ready(self) -> bool:
        claim = self._kubectl.get("persistentvolumeclaim", self.name)
        return claim["metadata"]["annotations"].get(READY) == "true" or self._look_at_events()

    def _look_at_events(self) -> bool:
        for kind, fatal in (("PersistentVolumeClaim", "ProvisioningFailed"), ("DataVolume", "ErrClaimNotValid")):
            for event in self._kubectl.events(kind, self.name):
                # A write conflict is retried by the controller, and newer builds of virtctl ignore it.
                if event["reason"] == fatal and "the object has been modified" not in event["message"]:
                    raise VirtctlError(event["message"])
        return False

    def _done(self) -> bool:
        return (
            self._kubectl.get("persistentvolumeclaim", self.name)["metadata"]["annotations"].get(PHASE) == "Succeeded"
        )

    # --- Sending --------------------------------------------------------------------------------------------------

    def _send(self, content: bytes) -> None:
        token = self.token or self.uploads.token(self.name)
        path = f"{self.versions[0]}/upload-async"
        if self._ask("HEAD", path, token)[0] != 200:
            path = f"{self.versions[1]}/upload"
        for left in reversed(range(TRIES)):
            status, text = self._ask("POST", path, token, content)
            if status == 200:
                return
            if not left or (left == TRIES - 1 and status == 401):
                raise VirtctlError(f"unexpected return value {status}, {text}")
            self.slept += 1
            time.sleep(0.05)

    def _ask(self, method: str, path: str, token: str, content: bytes | None = None) -> tuple[int, str]:
        connection = http.client.HTTPSConnection(self.uploads.host, timeout=SLOW)
        connection.sock = self.uploads.connect()
        try:
            fields = {"Authorization": f"Bearer {token}"}
            if content is not None:
                fields |= {"Content-Type": "application/octet-stream", "Content-Length": str(len(content))}
            connection.request(method, path, content, fields)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def content():
    return disk()


def modes(uploads, *names):
    """Return the volume modes by name; a storage profile may have chosen them."""
    found = [uploads.work.get("persistentvolumeclaim", name)["spec"]["volumeMode"] for name in names]
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize(
    ("storage_class", "force_bind", "block"),
    [("csi", False, True), ("csi-wait", True, False), ("local-wait", True, False)],
)
def test_into_a_data_volume_that_it_makes(uploads, content, tmp_path, storage_class, force_bind, block):
    name = f"dv-{storage_class}-{'block' if block else 'filesystem'}"
    call = Virtctl(uploads=uploads, name=name, storage_class=storage_class, force_bind=force_bind, block=block)
    call.upload_dv(qcow2(content, tmp_path))
    assert call.slept == 0
    uploads.hold(modes(uploads, name), content)
    with pytest.raises(VirtctlError, match="already successfully"):
        call.upload_dv(content)


@pytest.mark.parametrize(
    ("storage_class", "force_bind", "block"), [("csi", False, False), ("csi-wait", True, True), ("local", False, True)]
)
def test_into_a_claim_that_it_makes(uploads, content, storage_class, force_bind, block):
    name = f"pvc-{storage_class}-{'block' if block else 'filesystem'}"
    call = Virtctl(uploads=uploads, name=name, storage_class=storage_class, force_bind=force_bind, block=block)
    call.upload_pvc(content)
    assert call.slept == 0
    uploads.hold_claims(modes(uploads, name), content)
    with pytest.raises(VirtctlError, match="already successfully"):
        call.upload_pvc(content)


def test_into_a_data_volume_that_is_there(uploads, content):
    names = [uploads.volume(f"there-{kind}", kind) for kind in ("csi", "local")]
    uploads.ready(*names)
    for name in names:
        Virtctl(uploads=uploads, name=name).upload_dv(content)
    uploads.hold(modes(uploads, *names), content)


def test_older_builds_know_other_paths(uploads, content):
    """One requests an older asynchronous path, one an unknown path and then the synchronous one."""
    Virtctl(uploads=uploads, name="older", versions=("/v1alpha1", "/v1alpha1")).upload_dv(content)
    Virtctl(uploads=uploads, name="oldest", versions=("/v1", "/v1alpha1"), storage_class="local").upload_dv(content)
    uploads.hold(modes(uploads, "older", "oldest"), content)


def test_without_leave_to_bind_it_says_what_it_waits_for(uploads, content):
    with pytest.raises(VirtctlError, match="PendingPopulation"):
        Virtctl(uploads=uploads, name="waits", storage_class="csi-wait").upload_dv(content)


def test_a_token_that_is_none_is_its_end(uploads, content):
    call = Virtctl(uploads=uploads, name="refused", storage_class="local", token="eyJhbGciOiJub25lIn0.e30.")
    with pytest.raises(VirtctlError, match="401"):
        call.upload_dv(content)
    assert call.slept == 0
    # The volume still accepts an upload.
    call.token = None
    call.upload_dv(content)


def test_an_image_that_is_too_large_is_refused_with_both_sizes(uploads, content, tmp_path):
    large = qcow2(bytes(128 * MIB), tmp_path)
    call = Virtctl(uploads=uploads, name="small", storage_class="local", size="32Mi", block=True)
    with pytest.raises(VirtctlError, match="unexpected return value 400") as said:
        call.upload_dv(large)
    assert "128" in str(said.value), said.value
    assert "32" in str(said.value), said.value
    assert call.slept == TRIES - 1
    call.upload_dv(content)
    uploads.hold(modes(uploads, "small"), content)
    assert annotations(uploads.work, "small")["storage.pod.phase"] == "Succeeded"
