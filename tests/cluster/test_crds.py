"""The CRD schemas on a real API server without webhooks: rejections, their messages, and accepted objects."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from cdi.api.kinds import KINDS
from tests.cluster.kubectl import KubectlError
from tests.unit.api import test_validation_datavolume as datavolumes
from tests.unit.api import test_validation_kinds as others
from tests.unit.api.consumers import CONSUMERS
from tests.unit.api.manifests import SHA256, SOUND, SOURCES, STORAGE, dv, obj, pvc_form, sound, spoilt

ROOT = Path(__file__).parents[2]
DEFINED = {kind.kind: kind for kind in KINDS if kind.defined}

WEBHOOK_ONLY = {
    "huge",
    "bad port",
    "bad escape",
    "header without colon",
    "two headers in one",
    "secret header's name",
    "architecture",
    "stage without snapshot",
    "stage twice",
    "a misspelt policy",
    "too many connections",
    "a signature without keys",
    "an empty region",
    "cosign's keys for a web server",
    "cosign's keys for a clone",
    "a file of a container image",
}
"""DataVolume cases that only the webhook rejects: CEL cannot express them, does not see annotations, or costs too much."""

OTHER_WORDS = {
    "ref kind": "Unsupported sourceRef kind",
    "two sources": "Multiple Data volume sources",
    "source and ref": "either Source or SourceRef",
    "host with a space": "names no host",
    "tab that urlsplit drops": "Invalid source URL",
    "outer space": "Invalid source URL",
    "endless": "Too long",
    "content type": 'supported values: "kubevirt", "archive"',
    "short digest": "Invalid checksum format",
    "unknown access mode": 'Unsupported value: "ReadMany"',
    "a number for a URL": "must be of type string",
    "text for a flag": "must be of type boolean",
    "a float for a size": "must be of type integer,string",
    "a word for a size": "should match",
    "a mapping for a list": "must be of type array",
}
"""Messages of the API server's built-in checks with the same meaning, or without the value."""

KINDS_WEBHOOK_ONLY = {
    ("spec.source.dataSource", "DataSource cannot point to itself"),
    ("spec.schedule", "Illegal cron schedule"),
    ("spec.importProxy.HTTPProxy", "Invalid source URL"),
    ("spec.podResourceRequirements.requests.cpu", "more than the limit of 750m"),
    ("spec.podResourceRequirements.limits.cpu", "less than 0"),
    ("spec.insecureRegistries[0]", "not a registry"),
    ("spec.imagePullSecrets[0].name", "Required value"),
    ("spec.filesystemOverhead.global", "file system overhead"),
    ("spec.config.filesystemOverhead.global", "overhead"),
    ("spec.certConfig.server.duration", "not a duration"),
    ("spec.certConfig.client.renewBefore", "not a duration"),
    ("spec.certConfig.ca.renewBefore", "not shorter than the duration"),
    ("spec.customizeComponents.patches[0].type", 'supported values: "json", "merge", "strategic"'),
    ("spec.target", "the source itself"),
    ("spec.template.metadata.annotations[cdi.kubevirt.io/policy.engine]", "'vmware' is not one of auto, qemu"),
}
"""Cases of the other kinds that only the webhook rejects."""


@pytest.fixture(scope="module", autouse=True)
def definitions(cluster):
    """Install the definitions of this checkout."""
    cluster.kubectl.run("apply", "--server-side", "--force-conflicts", f"--filename={ROOT / 'crds'}")
    cluster.kubectl.run("wait", "--for=condition=Established", "--timeout=150s", f"--filename={ROOT / 'crds'}")


@pytest.fixture(scope="module")
def api(cluster):
    """Create objects with `kubectl create --raw`, in a namespace of this module's own."""
    with cluster.namespace("crds") as kubectl:

        def create(document, *, dry_run=True, validation="Strict"):
            kind = DEFINED[document["kind"]]
            path = f"/apis/{kind.group}/{kind.version}"
            if kind.namespaced:
                path += f"/namespaces/{kubectl.namespace}"
            path += f"/{kind.plural}?fieldValidation={validation}" + ("&dryRun=All" if dry_run else "")
            body = copy.deepcopy(document)
            body["metadata"].pop("namespace", None)
            return kubectl.run("create", "--raw", path, "--filename=-", given=json.dumps(body))

        create.kubectl = kubectl
        yield create


def refusal(api, document):
    with pytest.raises(KubectlError) as caught:
        api(document)
    return str(caught.value)


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        pytest.param(d, f, OTHER_WORDS.get(name, w), id=name)
        for name, d, f, w in datavolumes.REFUSED
        if name not in WEBHOOK_ONLY
    ],
)
def test_a_wrong_datavolume_is_refused_in_the_same_words(api, document, field, words):
    said = refusal(api, document)
    assert words in said
    if field is not None:
        # The API server reports a rule of an object or list at that object or list.
        parents = [field.rsplit(".", cut)[0] for cut in range(field.count(".") + 1)]
        assert any(parent in said for parent in parents)


@pytest.mark.parametrize("name", sorted(WEBHOOK_ONLY))
def test_what_only_the_webhook_sees_is_what_it_is_said_to_be(api, name):
    api(next(document for each, document, *_ in datavolumes.REFUSED if each == name))


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(document, id=f"{document['kind']} {field} {words}")
        for document, field, words in others.REFUSED
        if document["kind"] in DEFINED and (field, words) not in KINDS_WEBHOOK_ONLY and "cluster-scoped" not in words
    ],
)
def test_wrong_objects_of_the_other_kinds_are_refused(api, document):
    assert "is invalid" in refusal(api, document)


@pytest.mark.parametrize("which", [which for which in SOUND if SOUND[which]["kind"] in DEFINED])
def test_what_is_sound_is_admitted(api, which):
    try:
        api(sound(which))
    except KubectlError as error:
        # The controller of another test may have made the only one of its kind; the rules are checked before.
        assert "AlreadyExists" in str(error)


@pytest.mark.parametrize("who", CONSUMERS)
def test_what_other_programs_write_is_admitted(api, who):
    # Their clients send fields that the API server drops: HCO's templates have metadata.
    api(CONSUMERS[who], validation="Warn")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_admitted(api, path):
    documents = [each for each in yaml.safe_load_all(path.read_text()) if each and each.get("kind") in DEFINED]
    for document in documents:
        api(document)


def test_a_field_that_does_not_exist_is_refused(api):
    assert 'unknown field "spec.source.http.checkum"' in refusal(
        api, dv({"http": {"url": "http://h/x", "checkum": SHA256}})
    )


def test_a_name_has_at_most_253_characters(api):
    api(dv() | {"metadata": {"name": "a" * 253}})
    assert "253" in refusal(api, dv() | {"metadata": {"name": "a" * 254}})


def test_annotations_of_a_mebibyte_are_refused(api):
    assert "Too long" in refusal(api, dv() | {"metadata": {"name": "much", "annotations": {"a": "x" * (1 << 20)}}})


# --- Immutable fields


@pytest.fixture
def stored(api):
    """Yield a function that stores an object and returns a function that replaces its spec."""
    made = []

    def store(document):
        kind = DEFINED[document["kind"]].plural
        name = f"thing-{len(made)}"
        api({**document, "metadata": {"name": name}}, dry_run=False)
        made.append((kind, name))

        def replace(spec):
            body = api.kubectl.get(kind, name) | {"spec": spec}
            api.kubectl.run("replace", "--filename=-", given=json.dumps(body))

        return replace

    yield store
    for kind, name in made:
        api.kubectl.delete(kind, name, wait=False)


VDDK = {"vddk": SOURCES["vddk"]}
FIRST = [{"previous": "", "current": "a"}]
SECOND = [*FIRST, {"previous": "a", "current": "b"}]
CHANGES = [
    ("another URL", dv(), dv({"http": {"url": "http://host/other"}})),
    ("another kind of source", dv(), dv({"blank": {}})),
    ("another size", dv(), dv(storage={"resources": {"requests": {"storage": "11Gi"}}})),
    ("no size", dv({"pvc": SOURCES["pvc"]}), dv({"pvc": SOURCES["pvc"]}, storage={})),
    ("the other form", dv(), pvc_form()),
    ("a checksum", dv(), dv({"http": {"url": "http://host/disk.qcow2", "checksum": SHA256}})),
    ("a header", dv(), dv({"http": {"url": "http://host/disk.qcow2", "extraHeaders": ["A: b"]}})),
    ("a volume mode", dv(), dv(storage=STORAGE | {"volumeMode": "Block"})),
    ("another access mode", pvc_form(), pvc_form(accessModes=["ReadWriteMany"])),
    ("preallocation", dv(), dv(preallocation=True)),
    ("content type", dv(), dv(contentType="archive")),
    ("a priority class", dv(), dv(priorityClassName="high")),
    ("the source of a clone", dv({"pvc": SOURCES["pvc"]}), dv({"pvc": {"namespace": "golden", "name": "other"}})),
    ("a selector", dv(), dv(storage=STORAGE | {"selector": {"matchLabels": {"a": "b"}}})),
    ("all stages taken away", dv(VDDK, checkpoints=FIRST), dv(VDDK)),
    ("a stage, and more", dv(VDDK, checkpoints=FIRST), dv(VDDK, checkpoints=SECOND, preallocation=True)),
]  # fmt: skip
SAME = [
    ("nothing", dv(), dv()),
    ("the size in other words", dv(), dv(storage={"resources": {"requests": {"storage": "10240Mi"}}})),
    ("the size as a number", dv(), dv(storage={"resources": {"requests": {"storage": 10 << 30}}})),
    ("Go's empty resources", dv({"pvc": SOURCES["pvc"]}, storage={}), dv({"pvc": SOURCES["pvc"]}, storage={"resources": {}})),
    ("an empty name", dv({"http": {"url": "http://host/x", "secretRef": ""}}), dv({"http": {"url": "http://host/x"}})),
    ("an empty list", dv(), dv({"http": {"url": "http://host/disk.qcow2", "extraHeaders": []}})),
    ("the default of finalCheckpoint", dv(), dv(finalCheckpoint=False)),
    ("the next stage", dv(VDDK, checkpoints=FIRST), dv(VDDK, checkpoints=SECOND, finalCheckpoint=True)),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [each[1:] for each in CHANGES], ids=[each[0] for each in CHANGES])
def test_a_datavolume_cannot_change(stored, before, after):
    replace = stored(before)
    with pytest.raises(KubectlError, match="Cannot update DataVolume Spec"):
        replace(after["spec"])


@pytest.mark.parametrize(("before", "after"), [each[1:] for each in SAME], ids=[each[0] for each in SAME])
def test_what_means_the_same_may_be_written_in_other_words(stored, before, after):
    stored(before)(after["spec"])


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("DataImportCron", {"schedule": "@daily"}, "Cannot update DataImportCron Spec"),
        ("DataImportCron", {"template__spec__preallocation": True}, "Cannot update DataImportCron Spec"),
        ("VolumeImportSource", {"preallocation": True}, "Cannot update VolumeImportSource Spec"),
        ("VolumeUploadSource", {"preallocation": True}, "Cannot update VolumeUploadSource Spec"),
        ("VolumeCloneSource", {"source__name": "y"}, "Cannot update VolumeCloneSource Spec"),
    ],
)
def test_other_specs_cannot_change(stored, kind, change, words):
    replace = stored(sound(kind))
    with pytest.raises(KubectlError, match=words):
        replace(spoilt(kind, **change)["spec"])


def test_specs_that_may_change(stored):
    newer = {"source": {"pvc": {"namespace": "golden", "name": "newer"}}}
    stored(sound("DataSource"))(spoilt("DataSource", **newer)["spec"])


def test_an_object_that_older_rules_let_in_can_lose_its_finalizer_and_go(api):
    """The API server does not apply a newer rule to an unchanged value."""
    document = dv({"registry": {"url": "docker://host/image"}})
    document["metadata"] = {"name": "older", "finalizers": ["example.org/hold"]}
    api(document, dry_run=False)
    api.kubectl.delete("datavolumes", "older", wait=False)
    api.kubectl.merge("datavolumes", "older", {"metadata": {"finalizers": None}})
    api.kubectl.wait_gone("datavolumes", "older")


def test_print_columns_and_short_names_work(api):
    api(obj("DataVolume", dv()["spec"], name="shown"), dry_run=False)
    head, line = api.kubectl.run("get", "dv", "shown").splitlines()
    assert head.split() == ["NAME", "PHASE", "PROGRESS", "RESTARTS", "AGE"]
    assert line.split()[0] == "shown"
    api.kubectl.delete("dv", "shown", wait=False)
