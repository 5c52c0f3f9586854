import pytest

from cdi.api.errors import NotFound, UploadNotReady
from cdi.server.proxy.volumes import ClusterVolumes, Destination, Filled, Pending

GROUP = "cdi.kubevirt.io"


class Cluster:
    """A `SyncClient` whose API server is a dictionary."""

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


def claim(reference=None, **annotations):
    spec = {} if reference is None else {"dataSourceRef": {"apiGroup": GROUP, "kind": reference}}
    return {"metadata": {"annotations": {f"{GROUP}/{key}": value for key, value in annotations.items()}}, "spec": spec}


def storage(**values):
    return {f"storage.{key.replace('_', '.')}": value for key, value in values.items()}


TARGET = storage(upload_target="")


PRIME = {**TARGET, **storage(usePopulator="true"), "storage.populator.pvcPrime": "prime-1"}


def deleted(claim):
    claim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return claim


@pytest.mark.parametrize(
    ("claims", "found"),
    [
        ({"vm": claim(**TARGET)}, Pending()),
        ({"vm": claim(**TARGET, **storage(pod_ready="false", pod_phase="Pending"))}, Pending()),
        (
            {"vm": claim(**TARGET, **storage(pod_ready="false", **{"condition.running.message": "no image"}))},
            Pending(why="no image"),
        ),
        (
            {
                "vm": claim(
                    **TARGET, **storage(**{"condition.bound.message": "no space", "condition.running.message": ""})
                )
            },
            Pending(why="no space"),
        ),
        ({"vm": claim(**TARGET, **storage(pod_ready="true", pod_phase="Running"))}, "cdi-upload-vm.ns.svc"),
        ({"vm": claim(**TARGET, **storage(pod_ready="false", pod_phase="Succeeded"))}, Filled()),
        (
            {"vm": claim(**TARGET, **storage(pod_phase="Succeeded"), **{"image.validator": "upload-5"})},
            Filled(upload="upload-5"),
        ),
        ({"vm": claim("VolumeUploadSource", **storage(pod_ready="true"))}, "cdi-upload-vm.ns.svc"),
        ({"vm": claim(**TARGET, **storage(pod_ready="true", usePopulator="true"))}, Pending()),
        ({"vm": claim(**PRIME), "prime-1": claim(**storage(pod_ready="true"))}, "cdi-upload-prime-1.ns.svc"),
        ({"vm": claim(**PRIME), "prime-1": claim(**storage(pod_phase="Succeeded"))}, Filled()),
    ],
)
def test_what_annotations_say(claims, found):
    state = ClusterVolumes(Cluster(**claims)).look("ns", "vm")
    assert state == (Destination(host=found) if isinstance(found, str) else found)


def test_an_unknown_content_type_is_refused_with_its_escaped_value():
    given = "<script>alert('x' & \"y\")</script>\n" + "z" * 1000
    volumes = ClusterVolumes(Cluster(vm=claim(**TARGET, **storage(contentType=given, pod_ready="true"))))
    with pytest.raises(UploadNotReady) as refused:
        volumes.look("ns", "vm")
    escaped = "&lt;script&gt;alert(&#39;x&#39; &amp; &#34;y&#34;)&lt;/script&gt; zzz"
    assert refused.value.what.startswith(f"rejecting upload request for PVC vm - upload content-type {escaped}")
    assert len(refused.value.what) < 400


@pytest.mark.parametrize("given", ["", "kubevirt", "archive"])
def test_a_known_content_type_is_accepted(given):
    volumes = ClusterVolumes(Cluster(vm=claim(**TARGET, **storage(contentType=given, pod_ready="true"))))
    assert volumes.look("ns", "vm") == Destination(host="cdi-upload-vm.ns.svc")


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({}, "the PersistentVolumeClaim does not exist"),
        ({"vm": claim()}, "is not an upload target"),
        ({"vm": {"metadata": {}, "spec": {}}}, "is not an upload target"),
        ({"vm": claim("VolumeImportSource", **storage(pod_ready="true"))}, "is not an upload target"),
        ({"vm": deleted(claim(**TARGET, **storage(pod_ready="true")))}, "is being deleted"),
        (
            {"vm": claim(**TARGET, **storage(pod_phase="Failed", **{"condition.running.message": "gave up."}))},
            "no longer accepts an upload: gave up",
        ),
        ({"vm": claim(**TARGET, **storage(pod_phase="Failed"))}, "no longer accepts an upload: it has failed"),
    ],
)
def test_where_no_waiting_helps_it_is_refused_at_once(claims, why):
    with pytest.raises(UploadNotReady, match=why):
        ClusterVolumes(Cluster(**claims)).look("ns", "vm")
