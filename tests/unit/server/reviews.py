"""AdmissionReviews as an API server sends them."""

import json

from cdi.api.kinds import KINDS
from cdi.server.hooks import HOOKS

BY_NAME = {hook.name: hook for hook in HOOKS}


def hook_of(document, operation="CREATE"):
    """Return the validating webhook for an object."""
    plural = next(kind.plural for kind in KINDS if kind.kind == document["kind"])
    return next(
        each for each in HOOKS if plural in each.plurals and operation in each.operations and each.kind == "validating"
    )


def review(document, *, operation="CREATE", old=None, uid="u-1", **request):
    kind = next(kind for kind in KINDS if kind.kind == (document or old)["kind"])
    meta = (document or old)["metadata"]
    asked = {
        "uid": uid,
        "kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "resource": {"group": kind.group, "version": kind.version, "resource": kind.plural},
        "name": meta.get("name", ""),
        "namespace": meta.get("namespace", "default") if kind.namespaced else "",
        "operation": operation,
        "userInfo": {"username": "alice"},
        "object": document,
        "oldObject": old,
        "dryRun": False,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked | request}


def body(document, **request) -> bytes:
    return json.dumps(review(document, **request)).encode()
