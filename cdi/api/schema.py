"""CustomResourceDefinitions out of the models.

Kubernetes wants *structural* schemas: every value has one type, nothing refers elsewhere, and ``anyOf`` only
adds to what stands beside it.  Pydantic's schemas become so by a short walk: references are written out, the
``null`` of optional fields is dropped, and titles and defaults go.  Rules in the Common Expression Language come from
`cdi.api.cel`.
"""

from __future__ import annotations

from typing import Any

from cdi.api.cel.definitions import apply_rules
from cdi.api.cel.frozen import freeze
from cdi.api.kinds import Column, Kind
from cdi.api.model import Model
from cdi.api.rules.update import IMMUTABLE

Schema = dict[str, Any]
_DROPPED = {"title", "default", "$defs", "const"}
_PRESERVE = "x-kubernetes-preserve-unknown-fields"


def definition(kind: Kind) -> Schema:
    """The CustomResourceDefinition of a kind."""
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
        "kind": kind.name,
        "listKind": f"{kind.name}List",
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


def object_schema(kind: Kind) -> Schema:
    """The structural schema of a kind's objects."""
    schema = structural(kind.model)
    # The API server knows metadata better than any schema, and accepts none but this.
    schema["properties"]["metadata"] = {"type": "object"}
    if kind.name in IMMUTABLE:
        schema["properties"]["spec"] = freeze(schema["properties"]["spec"], IMMUTABLE[kind.name])
    return schema


def structural(model: type[Model]) -> Schema:
    """The structural schema of a model."""
    schema = model.model_json_schema(by_alias=True)
    return _walk(schema, schema.get("$defs", {}), root=True)


def _walk(node: Schema, definitions: dict[str, Schema], *, root: bool = False) -> Schema:
    node = _resolved(node, definitions)
    if "x-kubernetes-int-or-string" in node:
        return {key: value for key, value in node.items() if key not in _DROPPED}
    # A nested object's metadata (a template's) has no API server to fill it: what it holds is kept as it is.
    if node.get("title") == "ObjectMeta" and not root:
        return {"type": "object", "description": node["description"], _PRESERVE: True}
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
                # Of a model it says only that unknown fields are read; of a mapping, that it is free.
                if value and "properties" not in node:
                    made[_PRESERVE] = True
            case "minimum" | "maximum" if node.get("format") == "int64":
                pass  # the format says it, and a number of JSON could not, exactly
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
    """References written out and ``null`` dropped; what stands beside a reference goes before its target."""
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
