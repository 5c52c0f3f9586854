"""The webhooks: which requests the Kubernetes API server asks us about, and what it does while nobody answers.

One table says it for the server's routes and for the configurations that are installed.  Whatever can be said in the
definitions themselves is said there (`cdi.api.cel`) and holds without any of this.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cdi.api.names import ANN_CLONE_TOKEN, COMMON_LABELS, GROUP, LABEL_APPLY_STORAGE_PROFILE, LABEL_COMPONENT, VERSION

Manifest = dict[str, Any]

TIMEOUT = 5
"""Seconds that a request waits for us; what it asks takes milliseconds, and one look at another object at most."""


class Operation(enum.StrEnum):
    """What is done to an object."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One webhook."""

    name: str
    """The last part of its configuration's name, of its own name, and of its path."""
    kind: Literal["validating", "mutating"]
    plurals: tuple[str, ...]
    operations: tuple[Operation, ...]
    failure: Literal["Fail", "Ignore"]
    """What becomes of a request while nobody answers."""
    reason: str
    """Why that."""
    group: str = GROUP
    version: str = VERSION
    namespaced: bool = True
    condition: str = ""
    """In CEL: of which requests it is asked at all."""
    labels: tuple[tuple[str, str], ...] = ()
    """Of which objects."""
    joining: str = ""
    """In CEL: of which others, where it is asked about objects with certain labels only, and they may come later."""

    @property
    def path(self) -> str:
        """What follows the word that API servers are told (`cdi.server.paths`)."""
        return f"/{self.name}"

    def matters(self, *, labelled: bool) -> str:
        """`condition`, for an installation that is asked about objects with certain labels or about all."""
        return f"({self.condition}) || ({self.joining})" if labelled and self.joining else self.condition


_WRITES = (Operation.CREATE, Operation.UPDATE)
# A finalizer, a label or an owner can so be changed while nobody answers: nothing gets stuck in its deletion.
_SPEC_CHANGES = (
    "request.operation == 'CREATE' || has(object.spec) != has(oldObject.spec) || "
    "(has(object.spec) && object.spec != oldObject.spec)"
)


def _has_token(variable: str) -> str:
    return f"has({variable}.metadata.annotations) && '{ANN_CLONE_TOKEN}' in {variable}.metadata.annotations"


# What could be a clone, and whatever carries a token of which we do not know yet where it is from.
_CLONES = (
    "request.operation == 'CREATE' ? has(object.spec.sourceRef) || (has(object.spec.source) && "
    f"(has(object.spec.source.pvc) || has(object.spec.source.snapshot))) || ({_has_token('object')}) : "
    f"({_has_token('object')}) && !({_has_token('oldObject')} && object.metadata.annotations['{ANN_CLONE_TOKEN}'] == "
    f"oldObject.metadata.annotations['{ANN_CLONE_TOKEN}'])"
)
# What is given the labels by which this is asked was made while it was not.
_JOINING = (
    f"request.operation == 'UPDATE' && ({_has_token('object')}) && "
    "(has(object.metadata.labels) != has(oldObject.metadata.labels) || "
    "(has(object.metadata.labels) && object.metadata.labels != oldObject.metadata.labels))"
)

HOOKS = (
    Hook(
        name="datavolume-validate",
        kind="validating",
        plurals=("datavolumes",),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        failure="Fail",
        reason="a DataVolume cannot be corrected once it is there, and whoever makes one tries again",
    ),
    Hook(
        name="datavolume-mutate",
        kind="mutating",
        plurals=("datavolumes",),
        operations=_WRITES,
        condition=_CLONES,
        joining=_JOINING,
        failure="Fail",
        reason="a clone that nobody has allowed would wait for ever",
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
        reason="claims belong to the whole cluster, which must not wait for us",
    ),
    Hook(
        name="datasource-validate",
        kind="validating",
        plurals=("datasources",),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        failure="Ignore",
        reason="the definition itself refuses most of it, and a DataSource can be corrected",
    ),
    Hook(
        name="dataimportcron-validate",
        kind="validating",
        plurals=("dataimportcrons",),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        failure="Fail",
        reason="a DataImportCron cannot be corrected once it is there",
    ),
    Hook(
        name="populator-validate",
        kind="validating",
        plurals=("volumeimportsources", "volumeuploadsources", "volumeclonesources"),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        failure="Ignore",
        reason="the definitions refuse most of it, and an import under way makes one, which must not wait for us",
    ),
    Hook(
        name="objecttransfer-validate",
        kind="validating",
        plurals=("objecttransfers",),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        namespaced=False,
        failure="Fail",
        reason="a transfer cannot be corrected once it is there",
    ),
    Hook(
        name="configuration-validate",
        kind="validating",
        plurals=("storageprofiles", "cdiconfigs", "cdis"),
        operations=_WRITES,
        condition=_SPEC_CHANGES,
        namespaced=False,
        failure="Ignore",
        reason="an administrator must be able to repair an installation that does not answer",
    ),
    Hook(
        name="cdi-validate",
        kind="validating",
        plurals=("cdis",),
        operations=(Operation.DELETE,),
        condition="has(oldObject.spec.uninstallStrategy) && "
        "oldObject.spec.uninstallStrategy == 'BlockUninstallIfWorkloadsExist'",
        namespaced=False,
        failure="Fail",
        reason="it is what protects DataVolumes, and only where that was asked for",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where the server is reached, and what it is responsible for."""

    namespace: str
    service: str = "cdi-api"
    prefix: str = "cdi-api"
    """What the configurations' names begin with."""
    url: str = ""
    """``https://host:port`` where it is no Service of the cluster."""
    authorities: str = ""
    """The certificates that it is known by, PEM."""
    namespace_labels: Mapping[str, str] | None = None
    """Namespaces that it is responsible for, where it stands beside another CDI."""
    namespaces: tuple[str, ...] = ()
    """The same, by name."""
    object_labels: Mapping[str, str] | None = None
    """Objects that it is responsible for, where it stands beside another CDI."""

    def configuration(self, hook: Hook) -> str:
        """The name of a webhook's configuration."""
        return f"{self.prefix}-{hook.name}" if hook.name != "cdi-validate" else f"{self.prefix}-validate"


def webhook_configurations(installation: Installation) -> list[Manifest]:
    """What is installed: one ValidatingWebhookConfiguration or MutatingWebhookConfiguration for each webhook.

    The path is not in them: the server writes it (`cdi.server.publish`), and whoever installs anew leaves it as it is.

    What a cluster has once is looked after by the other CDI, where this one stands beside it in namespaces of its own.
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
