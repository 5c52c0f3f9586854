"""Tests of the CRDs: structural by Kubernetes' rules, in step with the models, and agreeing with the parser."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from cdi.api.kinds import KINDS
from cdi.api.schema import definition, object_schema
from cdi.api.validation import parse_manifest
from tests.unit.api.manifests import SOUND, dv, pvc_form, sound, spoilt

ROOT = Path(__file__).parents[3]
DEFINED = [kind for kind in KINDS if kind.defined]
TYPES = {"object", "array", "string", "integer", "number", "boolean"}
LOGIC = {"allOf", "anyOf", "oneOf", "not"}
FORBIDDEN = {"$ref", "$defs", "definitions", "dependencies", "patternProperties", "const", "uniqueItems", "deprecated",
             "discriminator", "id", "readOnly", "writeOnly", "xml", "title", "additionalItems", "$schema"}  # fmt: skip
INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]


def structural_errors(node, path="", *, root=False):
    """Yield violations of Kubernetes' rules for structural schemas (documentation on CustomResourceDefinitions)."""
    for key in sorted(FORBIDDEN & node.keys()):
        yield f"{path}: {key} is not allowed"
    special = node.get("x-kubernetes-int-or-string")
    if special:
        if "type" in node or node.get("anyOf", INT_OR_STRING) != INT_OR_STRING:
            yield f"{path}: an int-or-string has no type and at most that anyOf"
        return
    if node.get("type") not in TYPES and "x-kubernetes-preserve-unknown-fields" not in node:
        yield f"{path}: no type"
    for key in LOGIC & node.keys():
        yield f"{path}: {key} where nothing needs it"
    if "additionalProperties" in node and ("properties" in node or node["additionalProperties"] in (True, False)):
        yield f"{path}: additionalProperties excludes properties and is a schema"
    if node.get("type") == "array" and "items" not in node:
        yield f"{path}: an array without items"
    if ("properties" in node or "additionalProperties" in node) and node.get("type") != "object":
        yield f"{path}: properties of no object"
    if root:
        if node.get("type") != "object":
            yield "the root is no object"
        if node["properties"].get("metadata", {}) != {"type": "object"}:
            yield "metadata may only be an object"
    if not set(node.get("required", ())) <= set(node.get("properties", {})):
        yield f"{path}: requires what it does not have"
    for name, part in node.get("properties", {}).items():
        yield from structural_errors(part, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from structural_errors(node[key], f"{path}[{key}]")


@pytest.mark.parametrize("kind", DEFINED, ids=lambda kind: kind.kind)
def test_schemas_are_structural(kind):
    assert list(structural_errors(object_schema(kind), root=True)) == []


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}},
        {"type": "object", "properties": {"a": {"$ref": "#/x", "type": "string"}}},
        {"type": "object", "properties": {"a": {"type": "object", "properties": {}, "additionalProperties": {}}}},
        {"type": "object", "properties": {"a": {"type": "array"}}},
        {"type": "object", "properties": {}, "required": ["a"]},
        {"type": "object", "properties": {"metadata": {"type": "object", "properties": {}}}},
        {"type": "object", "properties": {"a": {"type": "string", "title": "A"}}},
    ],
)
def test_the_rules_find_what_is_not_structural(broken):
    assert list(structural_errors(broken, root=True))


@pytest.mark.parametrize("kind", DEFINED, ids=lambda kind: kind.kind)
def test_every_field_is_described(kind):
    def bare(node, path):
        for name, part in node.get("properties", {}).items():
            if not part.get("description"):
                yield f"{path}.{name}"
            yield from bare(part, f"{path}.{name}")
        if "items" in node:
            yield from bare(node["items"], path)

    assert list(bare(object_schema(kind), "")) == [".metadata"]


@pytest.mark.parametrize(
    ("kind", "path", "text"),
    [
        ("CDI", "status", "CDIStatus defines the status of the installation"),
        ("CDI", "status.targetVersion", "The desired version of the resource"),
        ("CDIConfig", "status", "CDIConfigStatus provides the most recently observed status of the CDI"),
        ("CDIConfig", "status.uploadProxyURL", "The calculated upload proxy URL"),
        ("DataVolume", "status", "DataVolumeStatus contains the current status of the DataVolume"),
        (
            "DataVolume",
            "status.restartCount",
            "RestartCount is the number of times the pod populating the DataVolume has",
        ),
    ],
)
def test_kubectl_explain_shows_what_programs_look_for(kind, path, text):
    """`kubectl explain` wraps lines, so the text has to be where the description begins."""
    node = object_schema(next(one for one in DEFINED if one.kind == kind))
    for name in path.split("."):
        node = node["properties"][name]
    assert node["description"].startswith(text)


def test_what_is_generated_is_in_step_with_the_models():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "generate", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_drift_is_found(tmp_path, monkeypatch, capsys):
    module = runpy.run_path(str(ROOT / "scripts" / "generate"))
    monkeypatch.setitem(module["main"].__globals__, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    assert module["main"]() == 1
    monkeypatch.setattr(sys, "argv", ["generate"])
    assert module["main"]() == 0
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    assert module["main"]() == 0
    (tmp_path / "crds" / "datavolumes.yaml").write_text("{}")
    assert module["main"]() == 1
    assert "crds/datavolumes.yaml is not up to date" in capsys.readouterr().err


@pytest.mark.parametrize("kind", DEFINED, ids=lambda kind: kind.kind)
def test_the_files_hold_the_definitions(kind):
    assert yaml.safe_load((ROOT / "crds" / f"{kind.plural}.yaml").read_text()) == definition(kind)


def schema_errors(document):
    """Return the errors an API server would report, except about the null of a field that is not nullable."""
    kind = next(kind for kind in KINDS if kind.kind == document["kind"])
    return [error.message for error in Draft202012Validator(object_schema(kind)).iter_errors(document)]


@pytest.mark.parametrize("which", SOUND)
def test_what_the_parser_accepts_the_definition_accepts(which):
    parse_manifest(sound(which))
    assert schema_errors(sound(which)) == []


@pytest.mark.parametrize(
    "document",
    [
        dv({"http": {}}),
        dv({"http": {"url": 1}}),
        dv(preallocation="yes"),
        dv(contentType="x"),
        dv(storage={"resources": {"requests": {"storage": "10q"}}}),
        dv(storage={"resources": {"requests": {"storage": 1.5}}}),
        pvc_form(accessModes="ReadWriteOnce"),
        spoilt("DataImportCron", schedule=None),
        spoilt("DataImportCron", importsToKeep="3"),
        spoilt("StorageProfile", claimPropertySets=[{"accessModes": ["ReadWriteOnce"], "volumeMode": "x"}]),
        spoilt("CDIConfig", filesystemOverhead__global="2"),
        spoilt("CDI", imagePullPolicy="x"),
    ],
)
def test_what_the_definition_refuses_the_parser_refuses(document):
    assert schema_errors(document)
    with pytest.raises(Exception, match="spec"):
        parse_manifest(document)


def test_kinds_are_those_of_the_existing_api():
    facts = {(kind.kind, kind.plural, kind.short_names, kind.namespaced, kind.status_subresource) for kind in DEFINED}
    assert facts == {
        ("DataVolume", "datavolumes", ("dv", "dvs"), True, True),
        ("DataSource", "datasources", ("das",), True, False),
        ("DataImportCron", "dataimportcrons", ("dic", "dics"), True, False),
        ("StorageProfile", "storageprofiles", (), False, True),
        ("VolumeImportSource", "volumeimportsources", (), True, False),
        ("VolumeUploadSource", "volumeuploadsources", (), True, False),
        ("VolumeCloneSource", "volumeclonesources", (), True, False),
        ("CDI", "cdis", ("cdi", "cdis"), False, False),
        ("CDIConfig", "cdiconfigs", (), False, False),
        ("ObjectTransfer", "objecttransfers", ("ot", "ots"), False, True),
    }


def test_print_columns_of_a_datavolume():
    spec = definition(KINDS[0])["spec"]
    assert [column["name"] for column in spec["versions"][0]["additionalPrinterColumns"]] == [
        "Phase",
        "Progress",
        "Restarts",
        "Age",
    ]
