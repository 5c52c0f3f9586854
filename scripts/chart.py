"""Generated files of the Helm chart, for scripts/generate.

values.yaml, its schema and its table in the README are made from charts/cdi/values.source.yaml and the CDI resource,
the webhooks from cdi/server/hooks.py.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cdi.api.names import GROUP
from cdi.server.hooks import HOOKS, Installation, webhook_configurations

CHART = Path(__file__).resolve().parent.parent / "charts" / "cdi"
BEGIN, END = "<!-- values: made by scripts/generate -->\n", "<!-- end of values -->\n"
Schema = dict[str, Any]

# Keywords of a CustomResourceDefinition's schema that JSON schema does not know, or that a chart does not need.
_ONLY_CRD = ("format",)


def chart_files(crd: Schema) -> dict[Path, str]:
    """Return the content of each generated file by its path.

    Args:
        crd: the CDI resource's definition.
    """
    source = yaml.safe_load((CHART / "values.source.yaml").read_text())["properties"]
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    properties = {name: _resolved(each, spec) for name, each in source.items()}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart cdi",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _without_defaults(each) for name, each in properties.items()},
    }
    values = "# Made by scripts/generate out of values.source.yaml; do not edit.\n" + "".join(_values(properties, ""))
    before, _, rest = (CHART / "README.md").read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    table = "| value | default | |\n|---|---|---|\n" + "".join(_rows(properties, ""))
    return {
        CHART / "values.schema.json": json.dumps(schema, indent=1, ensure_ascii=False) + "\n",
        CHART / "values.yaml": values,
        CHART / "files" / "webhooks.yaml": _webhooks(),
        CHART / "README.md": before + BEGIN + table + END + after,
    }


def _webhooks() -> str:
    """Return the webhook configurations, to which templates/webhooks.yaml adds names and namespaces."""
    configurations = webhook_configurations(Installation(namespace="cdi"))
    labelled = {f"{hook.name}.{GROUP}": hook.matters(labelled=True) for hook in HOOKS if hook.joining}
    note = "# Made by scripts/generate out of cdi/server/hooks.py; do not edit.\n"
    return note + yaml.safe_dump({"configurations": configurations, "labelled": labelled}, sort_keys=False, width=118)


def _resolved(schema: Schema, spec: Schema) -> Schema:
    """Resolve references to the CDI resource's schema."""
    if "from" in schema:
        taken = spec
        for name in schema["from"].split("."):
            taken = taken["properties"][name]
        return {**_strict(taken), **{name: value for name, value in schema.items() if name != "from"}}
    if "properties" in schema:
        schema = {**schema, "properties": {name: _resolved(each, spec) for name, each in schema["properties"].items()}}
    if isinstance(schema.get("items"), dict):
        schema = {**schema, "items": _resolved(schema["items"], spec)}
    return schema


def _strict(schema: Schema) -> Schema:
    """Convert a CustomResourceDefinition's schema to a JSON schema that rejects unknown fields."""
    strict: Schema = {}
    for name, value in schema.items():
        if name.startswith("x-kubernetes-") or name in _ONLY_CRD:
            continue
        if name == "properties":
            strict[name] = {field: _strict(each) for field, each in value.items()}
        elif name in ("items", "additionalProperties") and isinstance(value, dict):
            strict[name] = _strict(value)
        else:
            strict[name] = value
    if strict.get("type") == "object" and "additionalProperties" not in strict:
        strict["additionalProperties"] = False
    return strict


def _without_defaults(schema: Schema) -> Schema:
    """Remove defaults, which are in values.yaml."""
    return {
        name: {field: _without_defaults(each) for field, each in value.items()} if name == "properties" else value
        for name, value in schema.items()
        if name != "default"
    }


def _values(properties: Schema, indent: str) -> Iterator[str]:
    """Yield the text of values.yaml, with each description above its value."""
    for name, schema in properties.items():
        if "default" not in schema and "properties" not in schema:
            continue
        gap = "\n" if not indent else ""
        lines = textwrap.wrap(schema["description"], 118 - len(indent), break_long_words=False, break_on_hyphens=False)
        yield gap + "".join(f"{indent}# {line}\n" for line in lines)
        if "default" in schema:
            text = yaml.safe_dump({name: schema["default"]}, sort_keys=False, default_flow_style=False, width=110)
            yield textwrap.indent(text, indent)
        else:
            yield f"{indent}{name}:\n"
            yield from _values(schema["properties"], indent + "  ")


def _rows(properties: Schema, prefix: str) -> Iterator[str]:
    """Yield the lines of the README's table: one for each value that has a default."""
    for name, schema in properties.items():
        path = f"{prefix}{name}"
        if "default" in schema:
            default = json.dumps(schema["default"], ensure_ascii=False).replace("|", "\\|")
            yield f"| `{path}` | `{default}` | {schema['description'].replace('|', chr(92) + '|')} |\n"
        elif "properties" in schema:
            yield f"| **`{path}`** | | {schema['description']} |\n"
            yield from _rows(schema["properties"], f"{path}.")
