"""Table of the admission webhooks: which requests they are called for, and what happens while they do not respond.

The server's routes and the installed webhook configurations are both generated from it. Rules that CEL can express are
in the CustomResourceDefinitions (`cdi.api.cel`) and hold without any webhook.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cdi.api.golden import PREFIX as GOLDEN_PREFIX
from cdi.api.names import ANN_CLONE_TOKEN, COMMON_LABELS, GROUP, LABEL_APPLY_STORAGE_PROFILE, LABEL_COMPONENT, VERSION
from cdi.api.policy import PREFIX as POLICY_PREFIX

Manifest = dict[str, Any]

TIMEOUT = 5
"""Seconds until the API server gives up on a webhook; a decision takes milliseconds and at most one API request."""


class Operation(enum.StrEnum):
    """The operation of an admission request."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A webhook."""

    name: str
    """The last part of its own name, its configuration's name and its path."""
    kind: Literal["validating", "mutating"]
    plurals: tuple[str, ...]
    operations: tuple[Operation, ...]
    failure: Literal["Fail", "Ignore"]
    """The failure policy: whether requests are denied or admitted while the webhook does not respond."""
    reason: str
    """The reason for the failure policy."""
    group: str = GROUP
    version: str = VERSION
    namespaced: bool = True
    condition: str = ""
    """A CEL expression; the webhook is called only for requests that match it."""
    labels: tuple[tuple[str, str], ...] = ()
    """The labels of the objects that it is called for."""
    joining: str = ""
    """A CEL expression for further requests if the webhook is limited by labels, which objects may get later."""

    @property
    def path(self) -> str:
        """Return the path below the secret prefix (`cdi.server.webhook_path`)."""
        return f"/{self.name}"

    def matters(self, *, labelled: bool) -> str:
        """Return the match condition, for an installation that handles objects with certain labels or all objects."""
        return f"({self.condition}) || ({self.joining})" if labelled and self.joining else self.condition


_WRITES = (Operation.CREATE, Operation.UPDATE)
# Metadata-only changes are not checked: finalizers can be removed while the webhook is down, so deletion never hangs.
_SPEC_CHANGES = (
    "request.operation == 'CREATE' || has(object.spec) != has(oldObject.spec) || "
    "(has(object.spec) && object.spec != oldObject.spec)"
)


def _has_token(variable: str) -> str:
    return f"has({variable}.metadata.annotations) && '{ANN_CLONE_TOKEN}' in {variable}.metadata.annotations"


# Match everything that may be a clone, and every token whose origin is not known yet.
# An object without a spec must not make the expression fail: the API server's own error names the missing field.
_CLONES = (
    "request.operation == 'CREATE' ? (has(object.spec) && (has(object.spec.sourceRef) || (has(object.spec.source) && "
    f"(has(object.spec.source.pvc) || has(object.spec.source.snapshot))))) || ({_has_token('object')}) : "
    f"({_has_token('object')}) && !({_has_token('oldObject')} && object.metadata.annotations['{ANN_CLONE_TOKEN}'] == "
    f"oldObject.metadata.annotations['{ANN_CLONE_TOKEN}'])"
)
# Match objects that get the selected labels later: the webhook was not called when they were created.
_JOINING = (
    f"request.operation == 'UPDATE' && ({_has_token('object')}) && "
    "(has(object.metadata.labels) != has(oldObject.metadata.labels) || "
    "(has(object.metadata.labels) && object.metadata.labels != oldObject.metadata.labels))"
)

# Match additional or changed settings; one that is removed needs no check, and the controller removes commands.
_SETTINGS_CHANGES = (
    "has(object.metadata.annotations) && object.metadata.annotations.exists(name, "
    f"(name.startsWith('{GOLDEN_PREFIX}') || name.startsWith('{POLICY_PREFIX}')) && "
    "!(has(oldObject.metadata.annotations) && name in oldObject.metadata.annotations && "
    "oldObject.metadata.annotations[name] == object.metadata.annotations[name]))"
)

HOOKS = (
    Hook(
        name="datavolume-validate",
        kind="validating",
        plurals=("datavolumes",),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        failure="Fail",
        reason="the spec of a DataVolume is immutable, and its creator can retry",
    ),
    Hook(
        name="datavolume-mutate",
        kind="mutating",
        plurals=("datavolumes",),
        operations=_WRITES,
        condition=_CLONES,
        joining=_JOINING,
        failure="Fail",
        reason="a clone without a token would stay pending",
    ),
    Hook(
        name="pvc-mutate",
        kind="mutating",
        group="",
        version="v1",
        plurals=("persistentvolumeclaims",),
        operations=(Operation.CREATE,),
        labels=((LABEL_APPLY_STORAGE_PROFILE, "true"),),
        failure="Ignore",
        reason="PVCs of other applications must not depend on CDI",
    ),
    Hook(
        name="datasource-validate",
        kind="validating",
        plurals=("datasources",),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        failure="Ignore",
        reason="the CRD rejects most invalid specs, and a DataSource can be corrected",
    ),
    Hook(
        name="dataimportcron-validate",
        kind="validating",
        plurals=("dataimportcrons",),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        failure="Fail",
        reason="the spec of a DataImportCron is immutable",
    ),
    Hook(
        name="dataimportcron-settings-validate",
        kind="validating",
        plurals=("dataimportcrons",),
        operations=(Operation.UPDATE,),
        condition=_SETTINGS_CHANGES,
        failure="Ignore",
        reason="a rollback must not depend on a webhook, and the controller reports invalid settings as well",
    ),
    Hook(
        name="populator-validate",
        kind="validating",
        plurals=("volumeimportsources", "volumeuploadsources", "volumeclonesources"),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        failure="Ignore",
        reason="the CRDs reject most invalid specs, and imports that create these objects must not be blocked",
    ),
    Hook(
        name="objecttransfer-validate",
        kind="validating",
        plurals=("objecttransfers",),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        namespaced=False,
        failure="Fail",
        reason="the spec of an ObjectTransfer is immutable",
    ),
    Hook(
        name="configuration-validate",
        kind="validating",
        plurals=("storageprofiles", "cdiconfigs", "cdis"),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        namespaced=False,
        failure="Ignore",
        reason="an administrator must be able to repair an installation whose webhooks do not respond",
    ),
    Hook(
        name="cdi-validate",
        kind="validating",
        plurals=("cdis",),
        operations=(Operation.DELETE,),
        condition="has(oldObject.spec) && has(oldObject.spec.uninstallStrategy) && "
        "oldObject.spec.uninstallStrategy == 'BlockUninstallIfWorkloadsExist'",
        namespaced=False,
        failure="Fail",
        reason="this protects DataVolumes, and only if uninstallStrategy requests it",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The address of the webhook server, and the objects that it handles."""

    namespace: str
    service: str = "cdi-api"
    prefix: str = "cdi-api"
    """The prefix of the configurations' names."""
    url: str = ""
    """The URL ``https://host:port`` if the server is outside the cluster, instead of a Service."""
    authorities: str = ""
    """The CA bundle that verifies its serving certificate, PEM."""
    namespace_labels: Mapping[str, str] | None = None
    """The labels of the namespaces that it handles, if another CDI is installed as well."""
    namespaces: tuple[str, ...] = ()
    """The names of the namespaces that it handles, if another CDI is installed as well."""
    object_labels: Mapping[str, str] | None = None
    """The labels of the objects that it handles, if another CDI is installed as well."""

    def configuration(self, hook: Hook) -> str:
        """Return the name of a webhook's configuration."""
        return f"{self.prefix}-{hook.name}" if hook.name != "cdi-validate" else f"{self.prefix}-validate"


def webhook_configurations(installation: Installation) -> list[Manifest]:
    """Return one ValidatingWebhookConfiguration or MutatingWebhookConfiguration for each webhook.

    Paths are left out: the server writes them (`cdi.server.ca_injection`), and another installation leaves them
    unchanged.

    If another CDI is installed and this one handles only certain namespaces, the other handles cluster-scoped objects.
    """
    apart = bool(installation.namespaces or installation.namespace_labels)
    return [_configuration(hook, installation) for hook in HOOKS if hook.namespaced or not apart]


def _configuration(hook: Hook, installation: Installation) -> Manifest:
    client: Manifest
    if installation.url:
        client = {"url": installation.url}
    else:
        client = {
            "service": {
                "namespace": installation.namespace,
                "name": installation.service,
                "port": 443,
            }
        }
    if installation.authorities:
        client["caBundle"] = base64.b64encode(installation.authorities.encode()).decode()
    webhook: Manifest = {
        "name": f"{hook.name}.{GROUP}",
        "clientConfig": client,
        "rules": [
            {
                "apiGroups": [hook.group],
                "apiVersions": [hook.version],
                "resources": list(hook.plurals),
                "operations": [str(operation) for operation in hook.operations],
                "scope": "Namespaced" if hook.namespaced else "Cluster",
            }
        ],
        "failurePolicy": hook.failure,
        "matchPolicy": "Equivalent",
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT,
        "admissionReviewVersions": ["v1"],
    }
    if hook.namespaced and (selector := _namespaces(installation)):
        webhook["namespaceSelector"] = selector
    if labels := {**dict(hook.labels), **(installation.object_labels or {})}:
        webhook["objectSelector"] = {"matchLabels": labels}
    if hook.condition:
        expression = hook.matters(labelled=bool(installation.object_labels))
        webhook["matchConditions"] = [{"name": "matters", "expression": expression}]
    if hook.kind == "mutating":
        webhook["reinvocationPolicy"] = "Never"
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": f"{hook.kind.capitalize()}WebhookConfiguration",
        "metadata": {
            "name": installation.configuration(hook),
            "labels": {**COMMON_LABELS, LABEL_COMPONENT: "cdi-api"},
            "annotations": {f"{GROUP}/failurePolicyReason": hook.reason},
        },
        "webhooks": [webhook],
    }


def _namespaces(installation: Installation) -> Manifest:
    selector: Manifest = {}
    if installation.namespace_labels:
        selector["matchLabels"] = dict(installation.namespace_labels)
    if installation.namespaces:
        selector["matchExpressions"] = [
            {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(installation.namespaces)}
        ]
    return selector
