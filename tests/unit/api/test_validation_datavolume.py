"""Tests of each rejection of a DataVolume: the field, and the text that clients and people search for."""

import pytest

from cdi.api.errors import InvalidManifest
from cdi.api.validation import parse, parse_manifest, validate
from tests.unit.api.manifests import SHA256, SOUND, SOURCES, STORAGE, dv, pvc_form, sound


def size(text):
    return {"resources": {"requests": {"storage": text}}}


def http(**fields):
    return dv({"http": {"url": "http://host/x"} | fields})


def registry(**fields):
    return dv({"registry": fields})


def without(kind, *names):
    return dv({kind: {name: value for name, value in SOURCES[kind].items() if name not in names}})


WARM = {"checkpoints": [{"previous": "", "current": "a"}, {"previous": "a", "current": "b"}]}
REF = {"kind": "DataSource", "name": "x"}
OTHER = {"apiGroup": "x.io", "kind": "X", "name": "y"}

POLICY = "cdi.kubevirt.io/policy."


def annotated(**policy):
    body = dv()
    body["metadata"]["annotations"] = {f"{POLICY}{name}": text for name, text in policy.items()}
    return body


REFUSED = [
    # import policy
    ("a misspelt policy", annotated(requireCheksum="true"), f"metadata.annotations[{POLICY}requireCheksum]",
     'Unsupported value: "requireCheksum": supported values: "addressing"'),
    ("too many connections", annotated(connections="65"), f"metadata.annotations[{POLICY}connections]",
     "Invalid value: 65 is not from 0 to 64"),
    ("a signature without keys", annotated(signature="require"), f"metadata.annotations[{POLICY}signature]",
     f"set {POLICY}keyring as well"),
    ("cosign's keys for a web server", annotated(cosignKeys="keys"), f"metadata.annotations[{POLICY}cosignKeys]",
     "cosign signs container images, but the source is http"),
    ("cosign's keys for a clone", annotated(cosignKeys="keys") | {"spec": dv({"pvc": SOURCES["pvc"]})["spec"]},
     f"metadata.annotations[{POLICY}cosignKeys]", "the source is pvc"),
    ("a file of a container image", annotated(disk="a.vmdk") | {"spec": dv({"registry": {"url": "docker://h/r"}})["spec"]},
     f"metadata.annotations[{POLICY}disk]", "the source is a container image"),
    ("an empty region", annotated(region=" "), f"metadata.annotations[{POLICY}region]", "is empty"),
    # PVC specification
    ("no claim", dv(storage=None), "spec.storage", "Missing Data volume PVC"),
    ("both forms", dv(pvc=pvc_form()["spec"]["pvc"]), "spec.storage", "Duplicate storage definition"),
    ("no size", dv(storage={}), "spec.storage.resources.requests.storage", "Storage size is missing"),
    ("no size in pvc", pvc_form(resources=None), "spec.pvc.resources.requests.storage", "PVC size is missing"),
    ("zero", dv(storage=size(0)), "spec.storage.resources.requests.storage", "can't be equal or less than zero"),
    ("negative", dv(storage=size("-1Gi")), "spec.storage.resources.requests.storage", "can't be equal or less"),
    ("tiny", dv(storage=size("1023Ki")), "spec.storage.resources.requests.storage", "minimum of 1Mi"),
    ("huge", dv(storage=size("8Ei")), "spec.storage.resources.requests.storage", "larger than a volume can be"),
    ("size left out of an import", dv(storage={"accessModes": ["ReadWriteOnce"]}), None, "Storage size is missing"),
    ("size left out of a clone as pvc",
     dv({"pvc": SOURCES["pvc"]}, storage=None, pvc={"accessModes": ["ReadWriteOnce"]}), None, "PVC size is missing"),
    ("no access mode", pvc_form(accessModes=[]), "spec.pvc.accessModes", "at least 1 access mode is required"),
    ("access mode left out", pvc_form(accessModes=None), "spec.pvc.accessModes", "at least 1 access mode"),
    ("two access modes", pvc_form(accessModes=["ReadWriteOnce", "ReadWriteMany"]), "spec.pvc.accessModes",
     "PVC multiple accessModes"),
    ("unknown access mode", pvc_form(accessModes=["ReadMany"]), "spec.pvc.accessModes",
     'Unsupported value: "ReadMany": supported values: "ReadOnlyMany"'),
    ("unknown access mode in storage", dv(storage=STORAGE | {"accessModes": ["x"]}), "spec.storage.accessModes",
     'Unsupported value: "x"'),
    ("volume mode", dv(storage=STORAGE | {"volumeMode": "block"}), "spec.storage.volumeMode", "Unsupported value"),
    ("storage class", dv(storage=STORAGE | {"storageClassName": "A"}), "spec.storage.storageClassName", "subdomain"),
    # source
    ("no source", dv(None), "spec.source",
     "Data volume should have either Source or SourceRef, or be externally populated"),
    ("source and ref", dv(sourceRef=REF), "spec.source",
     "Data volume should have either Source or SourceRef, or be externally populated; not both"),
    ("empty source", dv({}), "spec.source", "Missing Data volume source"),
    ("two sources", dv({"blank": {}, "upload": {}}), "spec.source", "Multiple Data volume sources: upload, blank"),
    ("ref kind", dv(None, sourceRef=REF | {"kind": "PVC"}), "spec.sourceRef.kind",
     "Unsupported sourceRef kind PVC"),
    ("ref without kind", dv(None, sourceRef=REF | {"kind": ""}), "spec.sourceRef.kind",
     "Missing sourceRef kind"),
    ("ref without name", dv(None, sourceRef=REF | {"name": ""}), "spec.sourceRef.name",
     "Missing sourceRef name"),
    *[(f"filled by others of {name} without {part}", dv(None, storage=STORAGE | {member: {**OTHER, part: ""}}),
       f"spec.storage.{member}.{part}", f"Required value: {name} {words}")
      for member, name in (("dataSource", "DataSource"), ("dataSourceRef", "DataSourceRef"))
      for part, words in (("name", "name"), ("kind", "kind"),
                          ("apiGroup", "apiGroup when kind is not 'PersistentVolumeClaim'"))],
    ("filled out of another namespace", dv(None, storage=STORAGE | {"dataSourceRef": OTHER | {"namespace": "gold"}}),
     "spec.storage.dataSourceRef.namespace", "Invalid value: DataSourceRef namespace not supported"),
    ("filled by two", dv(None, storage=STORAGE | {"dataSourceRef": OTHER, "dataSource": OTHER | {"name": "z"}}),
     "spec.storage", "DataSourceRef and DataSource must match"),
    ("filled by others, and by us", dv(storage=STORAGE | {"dataSource": OTHER}), "spec",
     "External population is incompatible with Source and SourceRef"),
    # content types
    ("content type", dv(contentType="tar"), "spec.contentType", "ContentType not one of: kubevirt, archive"),
    ("blank archive", dv({"blank": {}}, contentType="archive"), "spec.contentType",
     "SourceType cannot be blank and the contentType be archive"),
    ("registry archive", dv({"registry": SOURCES["registry"]}, contentType="archive"), "spec.contentType",
     "ContentType must be kubevirt when Source is Registry"),
    ("archive on a block volume", dv(contentType="archive", storage=STORAGE | {"volumeMode": "Block"}),
     "spec.storage.volumeMode", "an archive needs volumeMode Filesystem"),
    # URLs
    ("empty URL", http(url=""), "spec.source.http.url", "spec.source source URL is empty"),
    ("no scheme", http(url="host/x"), "spec.source.http.url", "spec.source Invalid source URL: "),
    ("ftp", http(url="ftp://host/x"), "spec.source.http.url", "spec.source Invalid source URL scheme: "),
    ("file", http(url="file:///etc/shadow"), "spec.source.http.url", "Invalid source URL scheme"),
    ("s3 as http", http(url="s3://bucket/key"), "spec.source.http.url", "Invalid source URL scheme"),
    ("gs as s3", dv({"s3": {"url": "gs://bucket/key"}}), "spec.source.s3.url", "spec.source Invalid source URL scheme: "),
    ("s3 as gcs", dv({"gcs": {"url": "s3://bucket/key"}}), "spec.source.gcs.url", "spec.source Invalid source URL scheme: "),
    ("no host", http(url="http:///x"), "spec.source.http.url", "names no host"),
    ("host with a space", http(url="http://a b/x"), "spec.source.http.url", "names no host"),
    ("bad port", http(url="http://host:99999/"), "spec.source.http.url", "no valid port"),
    ("bad bracket", http(url="http://[::1/x"), "spec.source.http.url", "spec.source Invalid source URL: "),
    ("new line", http(url="http://host/x\r\nHost: evil"), "spec.source.http.url", "control characters"),
    ("zero byte", http(url="http://host/\0"), "spec.source.http.url", "control characters"),
    ("tab that urlsplit drops", http(url="ht\ttp://host/x"), "spec.source.http.url", "control characters"),
    ("outer space", http(url=" http://host/x"), "spec.source.http.url", "outer spaces"),
    ("backslash", http(url="http://host\\@evil/x"), "spec.source.http.url", "backslash"),
    ("bad escape", http(url="http://host/%zz"), "spec.source.http.url", "percent sign"),
    ("endless", http(url="http://host/" + "x" * 9000), "spec.source.http.url", "longer than"),
    ("bucket alone", dv({"s3": {"url": "s3://bucket"}}), "spec.source.s3.url", "s3://bucket/object"),
    ("object alone", dv({"gcs": {"url": "gs:///object"}}), "spec.source.gcs.url", "gs://bucket/object"),
    ("imageio URL", dv({"imageio": SOURCES["imageio"] | {"url": "engine"}}), "spec.source.imageio.url",
     "spec.source Invalid source URL: "),
    # http
    ("checksum without algorithm", http(checksum="0" * 64), "spec.source.http.checksum", "Invalid checksum format"),
    ("unknown algorithm", http(checksum="crc32:00000000"), "spec.source.http.checksum", "Invalid checksum format"),
    ("short digest", http(checksum=SHA256[:-1]), "spec.source.http.checksum", "sha256 requires 64 hex digits"),
    ("digest of other letters", http(checksum="md5:" + "g" * 32), "spec.source.http.checksum", "Invalid checksum"),
    ("header without colon", http(extraHeaders=["ok: 1", "secret"]), "spec.source.http.extraHeaders[1]", "header line"),
    ("two headers in one", http(extraHeaders=["A: b\r\nC: d"]), "spec.source.http.extraHeaders[0]", "header line"),
    ("secret's name", http(secretRef="No_Name"), "spec.source.http.secretRef", "not a DNS subdomain"),
    ("config map's name", http(certConfigMap="../x"), "spec.source.http.certConfigMap", "not a DNS subdomain"),
    ("secret header's name", http(secretExtraHeaders=[""]), "spec.source.http.secretExtraHeaders[0]", "Required value"),
    # registry
    ("neither url nor stream", registry(), "spec.source.registry", "should have either URL or ImageStream"),
    ("both url and stream", registry(url="docker://a/b", imageStream="c", pullMethod="node"), "spec.source.registry",
     "should have either URL or ImageStream"),
    ("stream pulled by the pod", registry(imageStream="x"), "spec.source.registry.pullMethod",
     "ImageStream is supported only with node pull"),
    ("empty stream", registry(imageStream="", pullMethod="node"), "spec.source.registry.imageStream", "not valid"),
    ("pull method", registry(url="docker://a/b", pullMethod="host"), "spec.source.registry.pullMethod", "neither pod, node"),
    ("registry scheme", registry(url="https://a/b"), "spec.source.registry.url", "Illegal registry source URL scheme"),
    ("registry without scheme", registry(url="quay/x"), "spec.source.registry.url", "Illegal registry source URL scheme"),
    ("registry without image", registry(url="docker://"), "spec.source.registry.url", "names no image"),
    ("registry with a space", registry(url="docker://a/b c"), "spec.source.registry.url", "names no image"),
    ("docker without slashes", registry(url="docker:a/b"), "spec.source.registry.url", "write docker://"),
    ("empty registry URL", registry(url=""), "spec.source.registry.url",
     "Illegal registry source URL scheme: source URL is empty"),
    ("architecture", registry(url="docker://a/b", platform={"architecture": "amd 64"}),
     "spec.source.registry.platform.architecture", "not an architecture"),
    # imageio, vddk
    ("imageio without secret", without("imageio", "secretRef"), "spec.source.imageio.secretRef",
     "spec.source.Imageio source Imageio is not valid"),
    ("imageio without CA", without("imageio", "certConfigMap"), "spec.source.imageio.certConfigMap", "Imageio is not valid"),
    ("imageio without disk", dv({"imageio": SOURCES["imageio"] | {"diskId": ""}}), "spec.source.imageio.diskId",
     "Imageio is not valid"),
    *[(f"vddk without {name}", without("vddk", name), f"spec.source.vddk.{name}",
       "spec.source.VDDK source VDDK is not valid")
      for name in ("secretRef", "uuid", "backingFile", "thumbprint")],
    ("vddk without URL", without("vddk", "url"), "spec.source.vddk.url", "spec.source source URL is empty"),
    # clones
    ("pvc without a name", dv({"pvc": {"namespace": "a", "name": ""}}), "spec.source.pvc",
     "spec.source.PVC source PVC is not valid"),
    ("snapshot without namespace", dv({"snapshot": {"namespace": "", "name": "a"}}), "spec.source.snapshot",
     "spec.source.Snapshot source snapshot is not valid"),
    ("pvc of a bad namespace", dv({"pvc": {"namespace": "a.b", "name": "c"}}), "spec.source.pvc.namespace", "DNS label"),
    # multi-stage imports
    ("stages over http", dv(**WARM), "spec.checkpoints", "imageio and vddk only"),
    ("stage without snapshot", dv({"vddk": SOURCES["vddk"]}, checkpoints=[{"previous": "", "current": ""}]),
     "spec.checkpoints[0].current", "Required value"),
    ("stage twice", dv({"vddk": SOURCES["vddk"]}, checkpoints=[WARM["checkpoints"][0]] * 2),
     "spec.checkpoints[1].current", "Duplicate value"),
    ("priority class", dv(priorityClassName="_"), "spec.priorityClassName", "not a DNS subdomain"),
    # structure
    ("no URL at all", dv({"http": {}}), "spec.source.http.url", "Required value"),
    ("no spec", {key: value for key, value in dv().items() if key != "spec"}, "spec", "Required value"),
    ("a number for a URL", http(url=5), "spec.source.http.url",
     "Invalid value: 5: must be of type string, not integer (put it in quotes)"),
    ("text for a flag", dv(preallocation="true"), "spec.preallocation", "must be of type boolean, not string"),
    ("a float for a size", dv(storage=size(1.5)), "spec.storage.resources.requests.storage", "must be of type string or integer, not number"),
    ("a word for a size", dv(storage=size("big")), "spec.storage.resources.requests.storage", "is not a quantity"),
    ("a list for a mapping", dv(storage=[]), "spec.storage", "Invalid value"),
    ("a mapping for a list", pvc_form(accessModes={}), "spec.pvc.accessModes", "must be of type array, not object"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "field", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_wrong_datavolume_is_refused_with_the_field_and_the_reason(document, field, words):
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(document)
    assert words in caught.value.what
    if field is not None:
        assert f"{field}: " in caught.value.what
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", SOUND)
def test_sound_objects_are_accepted(which):
    assert validate(parse_manifest(sound(which))) == ()


@pytest.mark.parametrize(
    "document",
    [
        dv({"pvc": SOURCES["pvc"]}, storage={}),
        dv({"snapshot": SOURCES["snapshot"]}, storage={}),
        dv({"s3": {"url": "http://minio:9000/bucket/key"}}),
        dv({"gcs": {"url": "https://storage.googleapis.com/bucket/object"}}),
        dv({"registry": {"url": "oci-archive:/images/a.tar"}}),
        dv({"registry": {"url": "oci-archive://images/a.tar"}}),
        dv({"registry": {"imageStream": "fedora", "pullMethod": "node"}}),
        dv({"imageio": {key: value for key, value in SOURCES["imageio"].items() if key != "certConfigMap"}
            | {"insecureSkipVerify": True}}),
        dv({"vddk": SOURCES["vddk"]}, **WARM, finalCheckpoint=True),
        dv({"http": {"url": "http://[::1]:80/x"}}, contentType=""),
        dv({"http": {"url": "http://bücher.example/ü"}}),
        dv({"http": {"url": "HTTP://host/x"}}),
        dv(contentType="archive"),
        dv(storage=STORAGE | {"accessModes": ["ReadWriteOncePod", "ReadWriteMany"], "volumeMode": "Block"}),
        dv(storage=size("1Mi")),
        dv(storage=size(1 << 40)),
        dv(None, storage=STORAGE | {"dataSourceRef": OTHER}),
        dv(None, storage=STORAGE | {"dataSourceRef": OTHER, "dataSource": OTHER}),
        dv(None, storage=STORAGE | {"dataSource": {"kind": "PersistentVolumeClaim", "name": "y"}}),
    ],
)  # fmt: skip
def test_what_the_existing_importer_takes_is_accepted(document):
    assert validate(parse_manifest(document)) == ()


def test_all_problems_are_in_one_message():
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(dv({"http": {"url": "ftp://h", "checksum": "x"}}, storage=size(0), contentType="z"))
    for words in ("scheme", "checksum format", "less than zero", "ContentType"):
        assert words in caught.value.what
    assert caught.value.where == "DataVolume default/thing"


def test_a_message_never_repeats_a_password_or_signature():
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(
            dv({"http": {"url": "ftp://user:hunter2@host/x?X-Amz-Signature=cafe", "extraHeaders": ["t0k3n"]}})
        )
    assert not any(secret in str(caught.value) for secret in ("hunter2", "cafe", "t0k3n"))


def test_an_object_that_was_admitted_before_can_always_be_read():
    document = dv({"http": {"url": "ftp://h"}}, storage=size(0)) | {"status": {"phase": "PhaseOfTheFuture"}}
    assert parse(document).to_dict() == document


@pytest.mark.parametrize(
    ("metadata", "field", "words"),
    [
        ({}, "metadata.name", "name or generateName is required"),
        ({"name": "a" * 254}, "metadata.name", "Name cannot be longer than 253 characters"),
        ({"name": "Fedora"}, "metadata.name", "not a DNS subdomain"),
        ({"name": "../x"}, "metadata.name", "not a DNS subdomain"),
        ({"name": "a\n"}, "metadata.name", "not a DNS subdomain"),
        ({"name": "a..b"}, "metadata.name", "not a DNS subdomain"),
        ({"generateName": "_x"}, "metadata.generateName", "cannot begin"),
        ({"name": "a", "namespace": "a.b"}, "metadata.namespace", "not a DNS label"),
        ({"name": "a", "namespace": "n" * 64}, "metadata.namespace", "not a DNS label"),
        ({"name": "a", "labels": {"k": "a b"}}, "metadata.labels[k]", "not a valid label value"),
        ({"name": "a", "labels": {"k": "v" * 64}}, "metadata.labels[k]", "not a valid label value"),
        ({"name": "a", "labels": {"/k": "v"}}, "metadata.labels", "not a qualified name"),
        ({"name": "a", "annotations": {"a b": "v"}}, "metadata.annotations", "not a qualified name"),
        ({"name": "a", "annotations": {"k": "v" * 300_000}}, "metadata.annotations", "bytes together"),
        ({"name": "a", "labels": {"k": 1}}, "metadata.labels.k", "1: must be of type string, not integer"),
    ],
)
def test_wrong_metadata_is_refused(metadata, field, words):
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(dv() | {"metadata": metadata})
    assert words in caught.value.what
    assert f"{field}: " in caught.value.what


@pytest.mark.parametrize(
    "metadata", [{"name": "a" * 253}, {"generateName": "fedora-"}, {"name": "a", "labels": {"kubevirt.io/x": ""}}]
)
def test_unusual_but_sound_metadata_is_accepted(metadata):
    parse_manifest(dv() | {"metadata": metadata})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (dv() | {"metadata": {"name": True}},
         "metadata.name: Invalid value: true: must be of type string, not boolean "
         "(put it in quotes; YAML reads a bare yes, no, on or off as a boolean)"),
        (dv() | {"metadata": {"name": 1.0}},
         "metadata.name: Invalid value: 1.0: must be of type string, not number (put it in quotes)"),
        (dv({"blank": True}),
         "spec.source.blank: Invalid value: true: must be of type object, not boolean (an empty object is {})"),
        (dv({"http": []}), "spec.source.http: Invalid value: must be of type object, not array"),
        (dv(storage={"resources": {"requests": {"storage": None}}}),
         "spec.storage.resources.requests.storage: Invalid value: a quantity must be of type string or integer, not null"),
        (dv(preallocation="yes"), 'spec.preallocation: Invalid value: "yes": must be of type boolean, not string'),
        (dv(checkpoints=5), "spec.checkpoints: Invalid value: 5: must be of type array, not integer"),
    ],
    ids=range(7),
)  # fmt: skip
def test_a_wrong_type_is_told_in_the_words_of_kubernetes(body, message):
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(body)
    assert caught.value.what == message
