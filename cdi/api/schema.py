"""CustomResourceDefinitions generated from the models.

Kubernetes requires *structural* schemas: every value has one type, there are no references, and ``anyOf`` only adds
constraints. Pydantic's schemas are converted by replacing references with their targets and removing ``null`` of
optional fields, titles and defaults. Validation rules in the Common Expression Language come from `cdi.api.cel`.
"""

from __future__ import annotations

from typing import Any

from cdi.api.cel.definitions import apply_rules, report_missing_spec
from cdi.api.cel.frozen import freeze
from cdi.api.kinds import Column, Resource
from cdi.api.model import Model

Schema = dict[str, Any]
_DROPPED = {"title", "default", "$defs", "const"}
_PRESERVE = "x-kubernetes-preserve-unknown-fields"


def definition(kind: Resource) -> Schema:
    """Return the CustomResourceDefinition of a kind."""
    version: Schema = {
        "name": kind.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": object_schema(kind)},
    }
    if kind.columns:
        version["additionalPrinterColumns"] = [_column(column) for column in kind.columns]
    if kind.status_subresource:
        version["subresources"] = {"status": {}}
    names: Schema = {
        "kind": kind.kind,
        "listKind": f"{kind.kind}List",
        "plural": kind.plural,
        "singular": kind.singular,
    }
    if kind.short_names:
        names["shortNames"] = list(kind.short_names)
    if kind.categories:
        names["categories"] = list(kind.categories)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "names": names,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [version],
        },
    }


def object_schema(kind: Resource) -> Schema:
    """Return the structural schema of a kind's objects."""
    schema = structural(kind.model)
    # The API server validates metadata itself and accepts no other schema for it.
    schema["properties"]["metadata"] = {"type": "object"}
    if kind.frozen:
        schema["properties"]["spec"] = freeze(schema["properties"]["spec"], kind.frozen)
    return report_missing_spec(kind.kind, schema)


def structural(model: type[Model]) -> Schema:
    """Return the structural schema of a model."""
    schema = model.model_json_schema(by_alias=True)
    return _walk(schema, schema.get("$defs", {}), root=True)


def _walk(node: Schema, definitions: dict[str, Schema], *, root: bool = False) -> Schema:
    node = _resolved(node, definitions)
    if "x-kubernetes-int-or-string" in node:
        return {key: value for key, value in node.items() if key not in _DROPPED}
    # As in KubeVirt's CDI, the API server removes what a template has in its metadata.
    if node.get("title") == "ObjectMeta" and not root:
        return {"type": "object", "description": node["description"]}
    made: Schema = {}
    for key, value in node.items():
        match key:
            case "properties":
                made[key] = {name: _walk(part, definitions) for name, part in sorted(value.items())}
            case "items":
                made[key] = _walk(value, definitions)
            case "additionalProperties" if isinstance(value, dict):
                made[key] = _walk(value, definitions)
            case "additionalProperties":
                # For a model, this only permits unknown fields; for a mapping, it permits any fields.
                if value and "properties" not in node:
                    made[_PRESERVE] = True
            case "minimum" | "maximum" if node.get("format") == "int64":
                pass  # implied by the format, and not exactly representable as a JSON number
            case _ if key not in _DROPPED:
                made[key] = value
            case _:
                pass
    if not made.get("properties", True):
        del made["properties"]
    if "properties" in made:
        made = apply_rules(node["title"], made)
    return _ordered(made)


def _resolved(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Resolve references and remove ``null``; keys next to a reference override those of its target."""
    while True:
        if "$ref" in node:
            target = definitions[node["$ref"].rpartition("/")[2]]
            node = target | {key: value for key, value in node.items() if key != "$ref"}
        elif "anyOf" in node and {"type": "null"} in node["anyOf"]:
            (choice,) = (one for one in node["anyOf"] if one != {"type": "null"})
            node = choice | {key: value for key, value in node.items() if key != "anyOf"}
        else:
            return node


def _ordered(node: Schema) -> Schema:
    order = ("description", "type", "format", "enum", "pattern", "items", "properties", "required")
    first = {key: node[key] for key in order if key in node}
    return first | {key: node[key] for key in sorted(node.keys() - first.keys())}


def _column(column: Column) -> Schema:
    made = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return made | {"description": column.description} if column.description else made
