"""Tests of the chart's values: each is described once, and each is used."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "cdi"
TEMPLATES = {path.name: path.read_text() for path in sorted((CHART / "templates").iterdir())}


@pytest.fixture(scope="module")
def schema():
    return yaml.safe_load((CHART / "values.schema.json").read_text())


def parts(schema, path=""):
    """Yield every part of the schema with its path."""
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from parts(each, f"{path}.{name}" if path else name)
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            yield from parts(schema[inner], f"{path}[]")


def values(properties, path=""):
    """Yield the paths of the values in values.source.yaml."""
    for name, each in properties.items():
        here = f"{path}.{name}" if path else name
        if "properties" in each and "default" not in each:
            yield from values(each["properties"], here)
        else:
            yield here


def test_every_value_is_described(schema):
    assert [path for path, each in parts(schema) if path and "description" not in each and "[]" not in path] == []


def test_values_that_are_not_known_are_refused(schema):
    open_ones = {path for path, each in parts(schema) if each.get("type") == "object" and not closed(each)}
    # Helm's own value, and values that are validated as part of a pod, a policy or a batch file.
    assert open_ones == {
        "global",
        "controller.extraEnv[].valueFrom",
        "apiserver.extraEnv[].valueFrom",
        "uploadProxy.extraEnv[].valueFrom",
        "infra.topologySpreadConstraints[]",
        "networkPolicy.metricsFrom[]",
        "batch[].images[]",
        "batch[].defaults",
    }


def closed(each):
    return each.get("additionalProperties") not in (None, True)


def test_values_have_defaults_that_are_of_their_type(schema):
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    for path, each in parts(schema):
        if not path or path == "global" or "[]" in path:
            continue
        found = defaults
        for name in path.split("."):
            if not isinstance(found, dict) or name not in found:
                break  # its type is one of Kubernetes' own
            found = found[name]
        else:
            assert type(found) is types[each["type"]], path


def test_templates_use_every_value_and_no_other():
    text = "".join(TEMPLATES.values())
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", text))
    # A component's values are reached by the component's name, those of metrics by a `with`.
    used |= {
        f"{component}.{name}"
        for component in ("controller", "apiserver", "uploadProxy")
        for name in re.findall(r"(?:\$values|get \$\.Values \$component\))\.([A-Za-z]+)", text)
    }
    used |= {
        f"metrics.{name}"
        for name in re.findall(
            r"\.((?:serviceMonitor|podMonitor|rules|dashboard)\.[a-z]+)", TEMPLATES["monitoring.yaml"]
        )
    }
    known = set(values(yaml.safe_load((CHART / "values.source.yaml").read_text())["properties"]))
    assert {each for each in used if not any(f"{path}.".startswith(f"{each}.") for path in known)} == set()
    assert known - used == {"global"}


def test_the_definitions_are_those_of_the_project():
    assert (CHART / "files" / "crds").resolve() == ROOT / "crds"


def test_the_chart_has_the_version_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_nothing_in_a_template_is_privileged_or_an_image_of_its_own():
    text = "".join(TEMPLATES.values())
    assert set(re.findall(r"^\s*image: (.*)$", text, re.MULTILINE)) == {'{{ include "cdi.image" . }}'}
    for word in ("privileged", "hostPath", "hostNetwork", "hostPID", "hostIPC", "hostPort"):
        assert word not in text


def test_who_may_only_view_a_namespace_may_not_clone_from_it():
    documents = TEMPLATES["userroles.yaml"].split("\n---\n")
    (view,) = (text for text in documents if "name: cdi.kubevirt.io:view\n" in text)
    (sourcer,) = (text for text in documents if "name: cdi.kubevirt.io:clone-sourcer\n" in text)
    assert "datavolumes/source" not in view
    assert "datavolumes/source" in sourcer
