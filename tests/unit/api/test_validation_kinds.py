"""Tests of rejections of all kinds but DataVolume."""

import pytest

from cdi.api.errors import InvalidManifest
from cdi.api.validation import parse_manifest
from tests.unit.api.manifests import SOUND, SOURCES, dv, obj, sound, spoilt

HTTP = {"http": {"url": "http://host/x"}}
OTHER = {"namespace": "default", "name": "other"}
POLICY = "cdi.kubevirt.io/policy."
SETS = [{"accessModes": ["ReadWriteOnce"], "volumeMode": "Block"}]


REFUSED = [
    # DataSource
    (obj("DataSource", {"source": {"pvc": OTHER, "snapshot": OTHER}}), "spec.source", "Multiple DataSource sources"),
    (obj("DataSource", {"source": {"dataSource": {"namespace": "default", "name": "thing"}}}), "spec.source.dataSource",
     "DataSource cannot point to itself"),
    (obj("DataSource", {"source": {"pvc": {"namespace": "default", "name": ""}}}), "spec.source.pvc", "is not valid"),
    (obj("DataSource", {}), "spec.source", "Required value"),
    # StorageProfile
    (spoilt("StorageProfile", claimPropertySets=SETS * 9), "spec.claimPropertySets", "at most 8 items"),
    (spoilt("StorageProfile", claimPropertySets=[SETS[0] | {"accessModes": []}]), "spec.claimPropertySets[0].accessModes",
     "at least 1 access mode"),
    (spoilt("StorageProfile", claimPropertySets=[SETS[0] | {"accessModes": ["x"]}]), "spec.claimPropertySets[0].accessModes",
     "Unsupported value"),
    (spoilt("StorageProfile", claimPropertySets=[SETS[0] | {"volumeMode": "FromStorageProfile"}]),
     "spec.claimPropertySets[0].volumeMode", "Unsupported value"),
    (spoilt("StorageProfile", claimPropertySets=[{"volumeMode": "Block"}]), "spec.claimPropertySets[0].accessModes",
     "Required value"),
    (spoilt("StorageProfile", cloneStrategy="fast"), "spec.cloneStrategy", "Unsupported value"),
    (spoilt("StorageProfile", dataImportCronSourceFormat="x"), "spec.dataImportCronSourceFormat", "Unsupported value"),
    (sound("StorageProfile") | {"metadata": {"name": "x", "namespace": "y"}}, "metadata.namespace", "cluster-scoped"),
    # CDIConfig and CDI
    *[(spoilt("CDIConfig", filesystemOverhead__global=value), "spec.filesystemOverhead.global", "file system overhead")
      for value in ("1.0", "1.5", "-0.1", "0.1234", "6%", "nan", ".1")],
    (spoilt("CDIConfig", filesystemOverhead__storageClass={"fast": "2"}), "spec.filesystemOverhead.storageClass[fast]",
     "file system overhead"),
    (spoilt("CDIConfig", filesystemOverhead__global=0.06), "spec.filesystemOverhead.global",
     "Invalid value: 0.06: must be of type string, not number (put it in quotes)"),
    (spoilt("CDIConfig", importProxy__HTTPProxy="proxy:3128"), "spec.importProxy.HTTPProxy", "Invalid source URL"),
    (spoilt("CDIConfig", podResourceRequirements__requests={"cpu": "2"}), "spec.podResourceRequirements.requests.cpu",
     "more than the limit of 750m"),
    (spoilt("CDIConfig", podResourceRequirements__limits={"cpu": "-1"}), "spec.podResourceRequirements.limits.cpu",
     "less than 0"),
    (spoilt("CDIConfig", insecureRegistries=["http://x/"]), "spec.insecureRegistries[0]", "not a registry"),
    (spoilt("CDIConfig", tlsSecurityProfile={"type": "Best"}), "spec.tlsSecurityProfile.type", "Unsupported value"),
    (spoilt("CDIConfig", tlsSecurityProfile={"type": "Custom"}), "spec.tlsSecurityProfile.custom", "Required value"),
    (spoilt("CDIConfig", tlsSecurityProfile__custom__minTLSVersion="SSL3"),
     "spec.tlsSecurityProfile.custom.minTLSVersion", "Unsupported value"),
    (spoilt("CDIConfig", imagePullSecrets=[{}]), "spec.imagePullSecrets[0].name", "Required value"),
    (spoilt("CDIConfig", logVerbosity=-1), "spec.logVerbosity", "less than 0"),
    (spoilt("CDI", config__filesystemOverhead__global="1.1"), "spec.config.filesystemOverhead.global", "overhead"),
    (spoilt("CDI", imagePullPolicy="Sometimes"), "spec.imagePullPolicy", "Unsupported value"),
    (spoilt("CDI", uninstallStrategy="x"), "spec.uninstallStrategy", "Unsupported value"),
    (spoilt("CDI", cloneStrategyOverride="x"), "spec.cloneStrategyOverride", "Unsupported value"),
    (spoilt("CDI", certConfig__server={"duration": "soon"}), "spec.certConfig.server.duration", "not a duration"),
    (spoilt("CDI", certConfig__server={"duration": "0s"}), "spec.certConfig.server.duration", "not a duration"),
    (spoilt("CDI", certConfig__client={"renewBefore": "x"}), "spec.certConfig.client.renewBefore", "not a duration"),
    (spoilt("CDI", certConfig__ca={"duration": "1h", "renewBefore": "60m"}), "spec.certConfig.ca.renewBefore",
     "not shorter than the duration"),
    (spoilt("CDI", infra__deploymentReplicas=-1), "spec.infra.deploymentReplicas", "less than 0"),
    (spoilt("CDI", customizeComponents__patches=[{"resourceName": "", "resourceType": "a", "patch": "", "type": "x"}]),
     "spec.customizeComponents.patches[0].type", 'supported values: "json", "merge", "strategic"'),
    # populators
    (obj("VolumeImportSource", {}), "spec.source", "Missing VolumeImport source"),
    (obj("VolumeImportSource", {"source": HTTP | {"blank": {}}}), "spec.source", "Multiple VolumeImport sources"),
    (obj("VolumeImportSource", {"source": {"blank": {}}, "contentType": "archive"}), "spec.contentType", "cannot be blank"),
    (obj("VolumeImportSource", {"source": HTTP, "contentType": "x"}), "spec.contentType", "ContentType not one of"),
    (obj("VolumeImportSource", {"source": {"vddk": SOURCES["vddk"]}, "checkpoints": [{"previous": "", "current": "a"}]}),
     "spec.targetClaim", "Unable to do multi-stage import without specifying a target claim"),
    (obj("VolumeUploadSource", {"contentType": "x"}), "spec.contentType", "ContentType not one of"),
    (obj("VolumeCloneSource", {"source": {"kind": "Pod", "name": "x"}}), "spec.source.kind", "Unsupported value"),
    (obj("VolumeCloneSource", {"source": {"kind": "VolumeSnapshot", "name": "x", "apiGroup": "apps"}}), "spec.source.apiGroup",
     "snapshot.storage.k8s.io"),
    (obj("VolumeCloneSource", {"source": {"kind": "PersistentVolumeClaim", "name": ""}}), "spec.source.name", "missing"),
    # ObjectTransfer, UploadTokenRequest
    (spoilt("ObjectTransfer", target={}), "spec.target", "Target namespace and/or target name must be supplied"),
    (spoilt("ObjectTransfer", target={"name": "b"}), "spec.target", "the source itself"),
    (spoilt("ObjectTransfer", source__kind="VolumeSnapshot"), "spec.source.kind", 'Unsupported kind "VolumeSnapshot"'),
    (spoilt("UploadTokenRequest", pvcName=""), "spec.pvcName", "missing"),
    # the core group
    (spoilt("PersistentVolumeClaim", resources={}), "spec.resources.requests.storage", "PVC size is missing"),
    (sound("PersistentVolumeClaim") | {"metadata": {"name": "x", "annotations": {f"{POLICY}nonsense": ""}}},
     f"metadata.annotations[{POLICY}nonsense]", "Unsupported value"),
    (spoilt("PersistentVolumeClaim", accessModes=[]), "spec.accessModes", "at least 1 access mode"),
    (sound("Secret") | {"data": {"k": "not base64!"}}, "data[k]", "not base64"),
    (sound("Secret") | {"data": {"../k": "YQ=="}}, "data", "not a valid key"),
    (sound("Secret") | {"stringData": {"..": "x"}}, "stringData", "not a valid key"),
    (sound("Secret") | {"stringData": {"k": "x" * 2_000_000}}, "stringData", "bytes together"),
    (sound("Secret") | {"data": {"k": 5}}, "data.k", "Invalid value: must be of type string, not integer"),
    (sound("ConfigMap") | {"binaryData": {"ca.pem": "YQ=="}}, "binaryData[ca.pem]", "also in data"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "field", "words"), REFUSED, ids=[f"{case[0]['kind']} {case[1]} {case[2]}" for case in REFUSED]
)
def test_a_wrong_object_is_refused_with_the_field_and_the_reason(document, field, words):
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(document)
    assert words in caught.value.what
    assert f"{field}: " in caught.value.what


@pytest.mark.parametrize("member", ["pvc", "snapshot", "dataSource"])
def test_a_datasource_may_leave_the_namespace_empty(member):
    parse_manifest(obj("DataSource", {"source": {member: {"namespace": "", "name": "other"}}}))
    with pytest.raises(InvalidManifest, match="cannot point to itself" if member == "dataSource" else "is not valid"):
        name = "thing" if member == "dataSource" else ""
        parse_manifest(obj("DataSource", {"source": {member: {"namespace": "", "name": name}}}))


def test_an_overhead_of_one_is_accepted_as_in_the_schema():
    parse_manifest(spoilt("CDIConfig", filesystemOverhead={"global": "1", "storageClass": {"fast": "1"}}))


def test_a_secret_value_is_never_repeated():
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(sound("Secret") | {"data": {"k": "hunter2 hunter2"}})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "apiVersion: Required value"),
        ({"apiVersion": "v1"}, "kind: Required value"),
        ({"apiVersion": 1, "kind": "DataVolume"}, "apiVersion: Required value"),
        ({"apiVersion": "v1", "kind": "Pod"}, "kind 'Pod' is not known: it is one of DataVolume"),
        ({"apiVersion": "cdi.kubevirt.io/v1alpha1", "kind": "DataVolume"}, "apiVersion of a DataVolume is"),
        ({"apiVersion": "v1", "kind": "x" * 10**6}, "is not known"),
    ],
)
def test_an_unknown_kind_is_refused(document, words):
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(document)
    assert words in caught.value.what
    assert len(str(caught.value)) < 1000


def test_many_problems_are_counted():
    with pytest.raises(InvalidManifest, match="and 30 more"):
        parse_manifest(dv({"http": {"url": "http://h", "extraHeaders": ["x"] * 50}}))


@pytest.mark.parametrize("which", [which for which in SOUND if "DataVolume" not in which])
def test_every_kind_reads_back_what_it_wrote(which):
    written = parse_manifest(sound(which)).to_dict()
    assert written == sound(which)
    assert parse_manifest(written).to_dict() == written


def test_a_claim_that_asks_for_its_profile_may_leave_out_what_the_profile_knows():
    claim = obj("PersistentVolumeClaim", {"volumeMode": "FromStorageProfile"}, api_version="v1")
    with pytest.raises(InvalidManifest, match="PVC size is missing"):
        parse_manifest(claim)
    claim["metadata"]["labels"] = {"cdi.kubevirt.io/applyStorageProfile": "true"}
    parse_manifest(claim)
