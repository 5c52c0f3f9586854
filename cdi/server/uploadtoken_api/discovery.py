"""Discovery and OpenAPI documents of the aggregated API, as the API server and kubectl request them.

The API has one resource with the single verb "create". It is therefore never listed, watched or garbage-collected.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

from cdi.api.kinds import UPLOAD_TOKEN_REQUESTS
from cdi.api.names import VERSION
from cdi.api.schema import object_schema

Document = dict[str, Any]


KIND = UPLOAD_TOKEN_REQUESTS
GROUP_PATH = f"/apis/{KIND.group}"
VERSION_PATH = f"{GROUP_PATH}/{KIND.version}"
COLLECTION = f"{VERSION_PATH}/namespaces/{{namespace}}/{KIND.plural}"
_ITEM = f"{COLLECTION}/{{name}}"
API_SERVICE = f"{VERSION}.{KIND.group}"
"""The name of the APIService that registers this API."""
_VERBS = ["create"]
_GVK = {"group": KIND.group, "version": KIND.version, "kind": KIND.kind}
_MODEL = "io.kubevirt.cdi.upload.v1beta1.UploadTokenRequest"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_DISCOVERY = "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList"


# --- discovery ----------------------------------------------------------------------------------------------------


def _group() -> Document:
    version = {"groupVersion": KIND.api_version, "version": KIND.version}
    return {"name": KIND.group, "versions": [version], "preferredVersion": version}


def group_list() -> Document:
    """Return the document at ``/apis``."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group()]}


def group() -> Document:
    """Return the document at ``/apis/GROUP``."""
    return {"kind": "APIGroup", "apiVersion": "v1", **_group()}


def resource_list() -> Document:
    """Return the document at ``/apis/GROUP/VERSION``."""
    resource = {
        "name": KIND.plural,
        "singularName": KIND.singular,
        "namespaced": True,
        "kind": KIND.kind,
        "verbs": _VERBS,
        "shortNames": list(KIND.short_names),
    }
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": KIND.api_version, "resources": [resource]}


def discovery(accept: str) -> tuple[str, Document]:
    """Return the content type and the document at ``/apis`` in the representation that `accept` asks for.

    The API server asks for aggregated discovery first (KEP-3352), and accepts the older form in response.
    """
    for part in accept.split(","):
        wanted = dict(item.strip().partition("=")[::2] for item in part.split(";")[1:])
        if wanted.get("g") == "apidiscovery.k8s.io" and wanted.get("as") == "APIGroupDiscoveryList":
            version = wanted.get("v", "")
            if version in ("v2", "v2beta1"):
                return _DISCOVERY.format(version), _aggregated(version)
    return "application/json", group_list()


def _aggregated(version: str) -> Document:
    resource = {
        "resource": KIND.plural,
        "responseKind": dict(_GVK),
        "scope": "Namespaced",
        "singularResource": KIND.singular,
        "verbs": _VERBS,
        "shortNames": list(KIND.short_names),
    }
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": [
            {
                "metadata": {"name": KIND.group},
                "versions": [{"version": KIND.version, "resources": [resource], "freshness": "Current"}],
            }
        ],
    }


# --- OpenAPI ------------------------------------------------------------------------------------------------------


def openapi_v2() -> Document:
    """Return the document at ``/openapi/v2`` (Swagger), which the API server merges into its own."""
    parameters = [
        {"name": name, "in": "query", "type": "string", "uniqueItems": True, "description": text}
        for name, text in _QUERY.items()
    ]
    operation = {
        **_operation(),
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "parameters": [
            {"name": "body", "in": "body", "required": True, "schema": {"$ref": f"#/definitions/{_MODEL}"}},
            *parameters,
        ],
        "responses": {"201": {"description": "Created", "schema": {"$ref": f"#/definitions/{_MODEL}"}}},
    }
    namespace = {"name": "namespace", "in": "path", "required": True, "type": "string", "uniqueItems": True}
    return {
        "swagger": "2.0",
        "info": {"title": KIND.group, "version": KIND.version},
        "paths": {
            COLLECTION: {"post": operation, "parameters": [namespace]},
            _ITEM: {"patch": _refused(parameters), "parameters": [namespace, {**namespace, "name": "name"}]},
        },
        "definitions": {_MODEL: _schema("#/definitions"), _META: {"type": "object"}},
    }


def openapi_v3() -> Document:
    """Return the document at ``/openapi/v3/apis/GROUP/VERSION``."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_MODEL}"}}}
    text = {"type": "string", "uniqueItems": True}
    parameters = [{"name": name, "in": "query", "schema": text, "description": about} for name, about in _QUERY.items()]
    operation = {
        **_operation(),
        "parameters": parameters,
        "requestBody": {"required": True, "content": content},
        "responses": {"201": {"description": "Created", "content": content}},
    }
    namespace = {"name": "namespace", "in": "path", "required": True, "schema": text}
    return {
        "openapi": "3.0.0",
        "info": {"title": KIND.group, "version": KIND.version},
        "paths": {
            COLLECTION: {"post": operation, "parameters": [namespace]},
            _ITEM: {"patch": _refused(parameters), "parameters": [namespace, {**namespace, "name": "name"}]},
        },
        "components": {"schemas": {_MODEL: _schema("#/components/schemas"), _META: {"type": "object"}}},
    }


def openapi_v3_index() -> Document:
    """Return the index at ``/openapi/v3``; clients cache the document by the hash in its URL."""
    digest = hashlib.sha512(json.dumps(openapi_v3(), sort_keys=True).encode()).hexdigest()
    path = VERSION_PATH.removeprefix("/")
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest.upper()}"}}}


_QUERY = {
    "dryRun": "All: the request is validated, and no token is created.",
    "fieldValidation": "How to handle unknown fields: Ignore, Warn (the default) or Strict.",
    "pretty": "Whether the response is indented.",
}


def _operation() -> Document:
    return {
        "operationId": f"create{KIND.kind}",
        "description": "request a token that authorizes an upload into a PersistentVolumeClaim",
        "tags": [KIND.group.replace(".", "_")],
        "x-kubernetes-action": "post",
        "x-kubernetes-group-version-kind": dict(_GVK),
    }


def _refused(parameters: list[Document]) -> Document:
    """Return the PATCH operation of a named request, which answers 404.

    It is listed because kubectl looks only at PATCH to find out whether a server validates fields. Without it, kubectl
    lists all CustomResourceDefinitions, which most users are not allowed to do.
    """
    return {
        **_operation(),
        "operationId": f"patch{KIND.kind}",
        "description": "not supported: requests are not stored",
        "x-kubernetes-action": "patch",
        "parameters": parameters,
        "responses": {"404": {"description": "Not Found"}},
    }


def _schema(root: str) -> Document:
    schema = copy.deepcopy(object_schema(KIND))
    _plain(schema)
    schema["properties"]["metadata"] = {"allOf": [{"$ref": f"{root}/{_META}"}]} if "components" in root else {
        "$ref": f"{root}/{_META}"
    }  # fmt: skip
    schema["x-kubernetes-group-version-kind"] = [dict(_GVK)]
    return schema


def _plain(schema: Document) -> None:
    """Remove the extensions that are valid only in a CustomResourceDefinition."""
    for key in [key for key in schema if key.startswith("x-kubernetes-")]:
        del schema[key]
    for part in (schema.get("properties") or {}).values():
        _plain(part)
