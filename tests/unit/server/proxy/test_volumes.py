from contextlib import contextmanager

import pytest

from cdi.api.errors import AlreadyUploaded, NotFound, UploadNotReady
from cdi.server.proxy.volumes import ClusterVolumes, Destination, await_ready

GROUP = "cdi.kubevirt.io"


class Cluster:
    """A `Blocking` whose API server is a dictionary."""

    def __init__(self, **claims):
        self.claims = claims
        self.client = self

    def get(self, resource, namespace, name):
        assert namespace == "ns"
        if name not in self.claims:
            raise NotFound("no")
        return self.claims[name]

    def run(self, found):
        return found


@contextmanager
def refused(kind):
    with pytest.raises(kind):
        yield


def claim(reference=None, **annotations):
    spec = {} if reference is None else {"dataSourceRef": {"apiGroup": GROUP, "kind": reference}}
    return {"metadata": {"annotations": {f"{GROUP}/{key}": value for key, value in annotations.items()}}, "spec": spec}


def storage(**values):
    return {f"storage.{key.replace('_', '.')}": value for key, value in values.items()}


TARGET = storage(upload_target="")


@pytest.mark.parametrize(
    ("claims", "found"),
    [
        ({}, UploadNotReady),
        ({"vm": claim()}, UploadNotReady),
        ({"vm": {"metadata": {}, "spec": {}}}, UploadNotReady),
        ({"vm": claim(**TARGET)}, None),
        ({"vm": claim(**TARGET, **storage(pod_ready="false", pod_phase="Pending"))}, None),
        ({"vm": claim(**TARGET, **storage(pod_ready="true", pod_phase="Running"))}, "cdi-upload-vm.ns.svc"),
        ({"vm": claim(**TARGET, **storage(pod_ready="false", pod_phase="Succeeded"))}, AlreadyUploaded),
        ({"vm": claim("VolumeUploadSource", **storage(pod_ready="true"))}, "cdi-upload-vm.ns.svc"),
        ({"vm": claim("VolumeImportSource", **storage(pod_ready="true"))}, UploadNotReady),
        ({"vm": claim(**TARGET, **storage(pod_ready="true", usePopulator="true"))}, None),
        (
            {
                "vm": claim(**TARGET, **storage(usePopulator="true"), **{"storage.populator.pvcPrime": "prime-1"}),
                "prime-1": claim(**storage(pod_ready="true")),
            },
            "cdi-upload-prime-1.ns.svc",
        ),
        (
            {
                "vm": claim(**TARGET, **storage(usePopulator="true"), **{"storage.populator.pvcPrime": "prime-1"}),
                "prime-1": claim(**storage(pod_phase="Succeeded")),
            },
            AlreadyUploaded,
        ),
    ],
)
def test_what_annotations_say(claims, found):
    volumes = ClusterVolumes(Cluster(**claims))
    if isinstance(found, type):
        with refused(found):
            volumes.look("ns", "vm")
    else:
        assert volumes.look("ns", "vm") == (None if found is None else Destination(host=found))


class Later:
    def __init__(self, looks):
        self.looks = looks

    def look(self, namespace, name):
        self.looks -= 1
        return None if self.looks else Destination(host="there")


def test_a_request_waits_for_its_volume():
    slept = []
    assert await_ready(Later(4), "ns", "vm", clock=lambda: sum(slept), sleep=slept.append).host == "there"
    assert sum(slept) == 1.5
    slept.clear()
    with pytest.raises(UploadNotReady, match="within 10 s"):
        await_ready(Later(1000), "ns", "vm", clock=lambda: sum(slept), sleep=slept.append)
    assert sum(slept) == 10
