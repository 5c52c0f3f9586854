"""Rules that an API server checks itself, in the Common Expression Language: ``x-kubernetes-validations``.

They say what `cdi.api.rules` says, as far as the language can, and in its words, so that a cluster refuses a broken
object also while the webhooks are away.  What they leave out is whatever would cost more than an API server allows, or
needs another object to be seen.

Cost.  An API server reckons each rule's worst case from the schema before it takes a definition: a string without a
maxLength counts as three megabytes, a list without maxItems as a million members.  Hence the limits here; none refuses
what could ever have worked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cdi.api.claims import AccessMode, VolumeMode
from cdi.api.names import MAX_LABEL, MAX_NAME
from cdi.api.rules.urls import GCS_SCHEMES, HTTP_SCHEMES, MAX_URL, S3_SCHEMES

Schema = dict[str, Any]
RULES = "x-kubernetes-validations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One expression that must be true, and what is wrong where it is not."""

    rule: str
    message: str
    field: str = ""
    """The member that the problem is shown at, where it is not the value itself: ``.storage``."""
    reason: str = ""
    """FieldValueRequired or the like; FieldValueInvalid where nothing is said."""

    def to_dict(self) -> dict[str, str]:
        """As it stands in a schema."""
        made = {"rule": self.rule, "message": self.message}
        return (
            made | ({"fieldPath": self.field} if self.field else {}) | ({"reason": self.reason} if self.reason else {})
        )


_REQUIRED = "FieldValueRequired"
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"


# --- pieces of expressions --------------------------------------------------------------------------------------


def _size(claim: str) -> str:
    return f"{claim}.resources.requests['storage']"


def _has_size(claim: str) -> str:
    return f"has({claim}.resources) && has({claim}.resources.requests) && 'storage' in {claim}.resources.requests"


def _amount(expression: str) -> str:
    """A quantity is a number or a text; either becomes one that can be compared."""
    return f"quantity(string({expression}))"


def _one_of(values: tuple[str, ...]) -> str:
    return f"self in [{', '.join(repr(value) for value in ('', *values))}]"


def _words(values: tuple[str, ...]) -> str:
    return ", ".join(f'"{value}"' for value in sorted(values))


_FILLED = " || ".join(
    f"(has(self.{form}) && (has(self.{form}.dataSource) || has(self.{form}.dataSourceRef)))"
    for form in ("pvc", "storage")
)
"""Something other than CDI fills the volume."""
_CLONE = "has(self.sourceRef) || (has(self.source) && (has(self.source.pvc) || has(self.source.snapshot)))"
_WARM = "has(self.source) && (has(self.source.imageio) || has(self.source.vddk))"


def _sizes(what: str) -> tuple[Rule, ...]:
    """The size of a claim, where it has one."""
    here = _size("self")
    absent = f"!({_has_size('self')})"
    field = ".resources.requests"
    return (
        Rule(
            rule=f"{absent} || {_amount(here)}.isGreaterThan(quantity('0'))",
            message=f"{what} size can't be equal or less than zero",
            field=field,
        ),
        Rule(
            rule=f"{absent} || !{_amount(here)}.isGreaterThan(quantity('0')) || "
            f"!{_amount(here)}.isLessThan(quantity('1Mi'))",
            message=f"{what} size is smaller than the minimum of 1Mi",
            field=field,
        ),
    )


def _content(source: str) -> tuple[Rule, ...]:
    """What may be an archive; `source` is the expression of the source."""
    archive = "!has(self.contentType) || self.contentType != 'archive'"
    return (
        Rule(
            rule=f"{archive} || !has({source}) || !has({source}.blank)",
            message="SourceType cannot be blank and the contentType be archive",
            field=".contentType",
        ),
        Rule(
            rule=f"{archive} || !has({source}) || !has({source}.registry)",
            message="ContentType must be kubevirt when Source is Registry",
            field=".contentType",
        ),
    )


_STAGES = Rule(
    rule=f"!has(self.checkpoints) || size(self.checkpoints) == 0 || ({_WARM})",
    message="checkpoints are for the sources imageio and vddk only",
    field=".checkpoints",
)


def _one_source(members: tuple[str, ...], what: str) -> tuple[Rule, ...]:
    given = "[" + ", ".join(f"has(self.{member})" for member in members) + "].filter(given, given).size()"
    return (
        Rule(rule=f"{given} > 0", message=f"Missing {what} source", reason=_REQUIRED),
        Rule(rule=f"{given} < 2", message=f"Multiple {what} sources; exactly one is allowed"),
    )


def _needed(what: str, *members: str, unless: str = "false") -> tuple[Rule, ...]:
    return tuple(
        Rule(
            rule=f"({unless}) || (has(self.{name}) && self.{name} != '')",
            message=f"source {what} is not valid: {name} is missing",
            field=f".{name}",
            reason=_REQUIRED,
        )
        for name in members
    )


def _reference(what: str) -> tuple[Rule, ...]:
    return (
        Rule(
            rule="self.__namespace__ != '' && self.name != ''",
            message=f"{what} is not valid: namespace and name are needed",
            reason=_REQUIRED,
        ),
    )


# --- of models --------------------------------------------------------------------------------------------------

_IMPORTED = ("http", "s3", "gcs", "registry", "blank", "imageio", "vddk")

MODEL_RULES: dict[str, tuple[Rule, ...]] = {
    "DataVolumeSpec": (
        Rule(
            rule="has(self.pvc) || has(self.storage)",
            message="Missing Data volume PVC: give storage or pvc",
            field=".storage",
            reason=_REQUIRED,
        ),
        Rule(
            rule="!(has(self.pvc) && has(self.storage))",
            message="Duplicate storage definition, both target storage and target pvc defined",
            field=".storage",
        ),
        Rule(
            rule=f"!has(self.pvc) || ({_has_size('self.pvc')})",
            message="PVC size is missing",
            field=".pvc",
            reason=_REQUIRED,
        ),
        Rule(
            rule=f"!has(self.storage) || {_CLONE} || ({_has_size('self.storage')})",
            message="Storage size is missing",
            field=".storage",
            reason=_REQUIRED,
        ),
        Rule(
            rule=f"!({_FILLED}) || (!has(self.source) && !has(self.sourceRef))",
            message="External population is incompatible with Source and SourceRef",
        ),
        Rule(
            rule=f"{_FILLED} || has(self.source) != has(self.sourceRef)",
            message="Data volume should have either Source or SourceRef",
            field=".source",
        ),
        *_content("self.source"),
        Rule(
            rule="!has(self.contentType) || self.contentType != 'archive' || ["
            + ", ".join(f"has(self.{form}) && has(self.{form}.volumeMode) && self.{form}.volumeMode == 'Block'"
                        for form in ("pvc", "storage"))
            + "].all(block, !block)",
            message="an archive needs volumeMode Filesystem",
        ),
        _STAGES,
    ),
    "VolumeImportSourceSpec": (
        Rule(rule="has(self.source)", message="Missing VolumeImport source", field=".source", reason=_REQUIRED),
        *_content("self.source"),
        _STAGES,
        Rule(
            rule=f"!has(self.checkpoints) || size(self.checkpoints) == 0 || !({_WARM}) || "
            "(has(self.targetClaim) && self.targetClaim != '')",
            message="Unable to do multi-stage import without specifying a target claim",
            field=".targetClaim",
            reason=_REQUIRED,
        ),
    ),
    "DataVolumeSource": _one_source((*_IMPORTED, "pvc", "upload", "snapshot"), "Data volume"),
    "ImportSource": _one_source(_IMPORTED, "VolumeImport"),
    "ClaimSpec": (
        *_sizes("PVC"),
        Rule(
            rule="has(self.accessModes) && size(self.accessModes) > 0",
            message="at least 1 access mode is required",
            field=".accessModes",
            reason=_REQUIRED,
        ),
        Rule(
            rule="!has(self.accessModes) || size(self.accessModes) < 2",
            message="PVC multiple accessModes: exactly 1 access mode is allowed",
            field=".accessModes",
        ),
    ),
    "StorageSpec": _sizes("Storage"),
    "SourceRegistry": (
        Rule(rule="has(self.url) != has(self.imageStream)",
             message="Source registry should have either URL or ImageStream"),
        Rule(
            rule="!has(self.imageStream) || (has(self.pullMethod) && self.pullMethod == 'node')",
            message="Source registry ImageStream is supported only with node pull import method",
            field=".pullMethod",
        ),
    ),
    "SourceImageio": (
        *_needed("Imageio", "secretRef", "diskId"),
        *_needed("Imageio", "certConfigMap", unless="has(self.insecureSkipVerify) && self.insecureSkipVerify"),
    ),
    "SourceVddk": (
        Rule(rule="has(self.url) && self.url != ''", message="source URL is empty", field=".url", reason=_REQUIRED),
        *_needed("VDDK", "secretRef", "uuid", "backingFile", "thumbprint"),
    ),
    "SourcePvc": _reference("source PVC"),
    "SourceSnapshot": _reference("source snapshot"),
    "DataSourceReference": _reference("source dataSource"),
    "VolumeCloneSourceSpec": (
        Rule(
            rule="self.source.kind in ['PersistentVolumeClaim', 'VolumeSnapshot']",
            message='Unsupported value: supported values: "PersistentVolumeClaim", "VolumeSnapshot"',
            field=".source.kind",
        ),
        Rule(
            rule="!has(self.source.apiGroup) || self.source.apiGroup == '' || self.source.apiGroup == "
            "(self.source.kind == 'VolumeSnapshot' ? 'snapshot.storage.k8s.io' : '')",
            message="the API group of a VolumeSnapshot is snapshot.storage.k8s.io, that of a PersistentVolumeClaim "
            "is empty",
            field=".source.apiGroup",
        ),
        Rule(
            rule="self.source.name != ''",
            message="the name of the source is missing",
            field=".source.name",
            reason=_REQUIRED,
        ),
    ),
    "DataSourceSource": (
        Rule(
            rule="[has(self.pvc), has(self.snapshot), has(self.dataSource)].filter(given, given).size() < 2",
            message="Multiple DataSource sources; exactly one is allowed",
        ),
    ),
    "DataImportCronSpec": (
        Rule(
            rule="has(self.template.spec.source) && (has(self.template.spec.source.registry) || "
            "has(self.template.spec.source.pvc) || has(self.template.spec.source.http) || "
            "has(self.template.spec.source.s3) || has(self.template.spec.source.gcs))",
            message="Missing registry source, or another that can be polled: gcs, http, pvc, registry, s3",
            field=".template.spec",
        ),
        Rule(
            rule="!has(self.template.spec.sourceRef) && "
            "(!has(self.template.spec.contentType) || self.template.spec.contentType == '') && "
            "(!has(self.template.spec.checkpoints) || size(self.template.spec.checkpoints) == 0) && "
            "(!has(self.template.spec.finalCheckpoint) || !self.template.spec.finalCheckpoint)",
            message="Unsettable fields: SourceRef, ContentType, Checkpoints, FinalCheckpoint",
            field=".template.spec",
        ),
    ),
    "ClaimPropertySet": (
        Rule(
            rule="size(self.accessModes) > 0",
            message="at least 1 access mode is required",
            field=".accessModes",
            reason=_REQUIRED,
        ),
    ),
    "TransferTarget": (
        Rule(
            rule="(has(self.__namespace__) && self.__namespace__ != '') || (has(self.name) && self.name != '')",
            message="Target namespace and/or target name must be supplied",
            reason=_REQUIRED,
        ),
    ),
    "TlsSecurityProfile": (
        Rule(
            rule="!has(self.type) || self.type != 'Custom' || has(self.custom)",
            message="type Custom needs its settings",
            field=".custom",
            reason=_REQUIRED,
        ),
    ),
}  # fmt: skip


# --- of fields --------------------------------------------------------------------------------------------------


def _name(what: str, *, required: bool = False, limit: int = MAX_NAME) -> Schema:
    """The name of another object: a DNS subdomain, or a label of one."""
    pattern = f"^{_LABEL}$" if limit == MAX_LABEL else rf"^{_LABEL}(\\.{_LABEL})*$"
    form = f"a DNS label of 1 to {MAX_LABEL} characters" if limit == MAX_LABEL else "a DNS subdomain"
    rules = [Rule(rule=f"self == '' || self.matches('{pattern}')", message=f"Name of {what} is not {form}")]
    if required:
        rules.insert(
            0,
            Rule(rule="self != ''", message=f"the name of {what} is missing", reason=_REQUIRED),
        )
    return {"maxLength": limit, RULES: [rule.to_dict() for rule in rules]}


def _word(*values: str, message: str = "") -> Schema:
    rule = Rule(
        rule=_one_of(values),
        message=message or f"Unsupported value: supported values: {_words(values)}",
        reason="" if message else "FieldValueInvalid",
    )
    return {"maxLength": MAX_NAME, RULES: [rule.to_dict()]}


_AUTHORITY = r"([^/?#]*@)?(\\[[^\\]/\\s]+\\]|[^/?#@:\\s\\[\\]]+)(:[0-9]{0,5})?([/?#]|$)"


def _url(schemes: tuple[str, ...]) -> Schema:
    web = [scheme for scheme in schemes if scheme in HTTP_SCHEMES]
    buckets = [scheme for scheme in schemes if scheme not in HTTP_SCHEMES]
    said = ", ".join(f"{scheme}://" for scheme in schemes[:-1]) + f" or {schemes[-1]}://"
    rules = [
        Rule(rule="self != ''", message="source URL is empty", reason=_REQUIRED),
        Rule(
            rule=f"self == '' || self.matches('^(?i)({'|'.join(schemes)}):')",
            message=f"Invalid source URL scheme: it does not begin with {said}",
        ),
        Rule(
            rule=f"!self.matches('^(?i)({'|'.join(web)}):') || self.matches('^(?i)({'|'.join(web)})://{_AUTHORITY}')",
            message="Invalid source URL: it names no host",
        ),
        Rule(
            rule=r"!self.matches('[\\x00-\\x1f\\x7f\\\\]')",
            message="Invalid source URL: it holds control characters or a backslash",
        ),
    ]
    rules += [
        Rule(
            rule=f"!self.matches('^(?i){scheme}:') || self.matches('^(?i){scheme}://[^/?#]+/+[^/?#]')",
            message=f"Invalid source URL: it is not of the form {scheme}://bucket/object",
        )
        for scheme in buckets
    ]
    return {"maxLength": MAX_URL, RULES: [rule.to_dict() for rule in rules]}


_REGISTRY_URL: Schema = {
    "maxLength": MAX_URL,
    RULES: [
        Rule(rule="self != ''", message="source URL is empty", reason=_REQUIRED).to_dict(),
        Rule(
            rule="self == '' || self.matches('^(?i)(docker|oci-archive):')",
            message="Illegal registry source URL scheme: it begins with docker:// or oci-archive://",
        ).to_dict(),
        Rule(
            rule=r"!self.matches('^(?i)(docker|oci-archive):') || self.matches('^[^:]*:/*[^/\\s]\\S*$')",
            message="Illegal registry source URL: it names no image",
        ).to_dict(),
        Rule(
            rule="!self.matches('^(?i)docker:') || self.matches('^(?i)docker://')",
            message="Illegal registry source URL: write docker://…",
        ).to_dict(),
    ],
}

_CHECKSUM: Schema = {
    "maxLength": 256,
    RULES: [
        Rule(
            rule="self == '' || self.matches('^(?i)\\\\s*(md5:[0-9a-f]{32}|sha1:[0-9a-f]{40}|sha224:[0-9a-f]{56}|"
            "sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})\\\\s*$')",
            message="Invalid checksum format: write it as sha256:<64 hex digits> (or md5, sha1, sha512)",
        ).to_dict()
    ],
}

_ACCESS_MODES: Schema = {"items": {"enum": [str(mode) for mode in AccessMode]}}
_VOLUME_MODE: Schema = _word(*(str(mode) for mode in VolumeMode))
_NOT_NEGATIVE: Schema = {"minimum": 0}
_INPUTS = {"secretRef": _name("Secret"), "certConfigMap": _name("ConfigMap")}

FIELD_RULES: dict[str, dict[str, Schema]] = {
    "SourceHttp": {"url": _url(HTTP_SCHEMES), "checksum": _CHECKSUM, **_INPUTS},
    "SourceS3": {"url": _url(S3_SCHEMES), **_INPUTS},
    "SourceGcs": {"url": _url(GCS_SCHEMES), "secretRef": _name("Secret")},
    "SourceRegistry": {
        "url": _REGISTRY_URL,
        "imageStream": {
            "maxLength": MAX_URL,
            RULES: [
                Rule(
                    rule="self != ''",
                    message="Source registry ImageStream is not valid: it is empty",
                    reason=_REQUIRED,
                ).to_dict()
            ],
        },
        "pullMethod": _word("pod", "node", message='ImportMethod is neither pod, node or ""'),
        **_INPUTS,
    },
    "SourceImageio": {"url": _url(HTTP_SCHEMES), **_INPUTS},
    "SourceVddk": {"url": _url(HTTP_SCHEMES), **_INPUTS, "extraArgs": _name("ConfigMap")},
    "SourcePvc": {"namespace": _name("namespace", limit=MAX_LABEL), "name": _name("source PVC")},
    "SourceSnapshot": {"namespace": _name("namespace", limit=MAX_LABEL), "name": _name("source snapshot")},
    "DataSourceReference": {"namespace": _name("namespace", limit=MAX_LABEL), "name": _name("source dataSource")},
    "SourceRef": {
        "kind": {
            "maxLength": MAX_NAME,
            RULES: [
                Rule(rule="self != ''", message="Missing sourceRef kind", reason=_REQUIRED).to_dict(),
                Rule(
                    rule="self in ['', 'DataSource']",
                    message="Unsupported sourceRef kind, currently only DataSource is supported",
                ).to_dict(),
            ],
        },
        "name": {
            "maxLength": MAX_NAME,
            RULES: [
                Rule(rule="self != ''", message="Missing sourceRef name", reason=_REQUIRED).to_dict(),
                *_name("DataSource")[RULES],
            ],
        },
        "namespace": _name("namespace"),
    },
    "StorageSpec": {
        "accessModes": _ACCESS_MODES,
        "volumeMode": _VOLUME_MODE,
        "storageClassName": _name("StorageClass"),
        "volumeName": _name("PersistentVolume"),
    },
    "DataVolumeSpec": {
        "priorityClassName": _name("PriorityClass"),
        "serviceAccountName": _name("ServiceAccount"),
    },
    "VolumeImportSourceSpec": {
        "contentType": _word("kubevirt", "archive", message="ContentType not one of: kubevirt, archive"),
        "targetClaim": _name("PersistentVolumeClaim"),
    },
    "VolumeUploadSourceSpec": {
        "contentType": _word("kubevirt", "archive", message="ContentType not one of: kubevirt, archive"),
    },
    "VolumeCloneSourceSpec": {"priorityClassName": _name("PriorityClass")},
    "DataImportCronSpec": {
        "garbageCollect": _word("Outdated", "Never", message="Illegal GarbageCollect value: Outdated or Never"),
        "retentionPolicy": _word("None", "All"),
        "importsToKeep": _NOT_NEGATIVE,
        "managedDataSource": {
            "maxLength": MAX_NAME,
            RULES: [
                Rule(
                    rule="self != ''", message="Illegal ManagedDataSource value: it is empty", reason=_REQUIRED
                ).to_dict(),
                *_name("DataSource")[RULES],
            ],
        },
        "serviceAccountName": _name("ServiceAccount"),
        "schedule": {"maxLength": 512},
    },
    "StorageProfileSpec": {
        "cloneStrategy": _word("copy", "snapshot", "csi-clone"),
        "dataImportCronSourceFormat": _word("pvc", "snapshot"),
        "snapshotClass": _name("VolumeSnapshotClass"),
    },
    "TransferSource": {
        "kind": {
            RULES: [
                Rule(
                    rule="self in ['DataVolume', 'PersistentVolumeClaim']",
                    message="Unsupported kind: DataVolume or PersistentVolumeClaim",
                ).to_dict()
            ],
            "maxLength": MAX_NAME,
        },
        "namespace": _name("source", required=True, limit=MAX_LABEL),
        "name": _name("source", required=True),
    },
    "TransferTarget": {"namespace": _name("namespace"), "name": _name("target")},
    "ConfigSpec": {
        "scratchSpaceStorageClass": _name("StorageClass"),
        "logVerbosity": _NOT_NEGATIVE,
    },
    "TlsSecurityProfile": {"type": _word("Old", "Intermediate", "Modern", "Custom")},
    "CustomTlsProfile": {
        "minTLSVersion": _word("VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"),
    },
    "InfraPlacement": dict.fromkeys(("deploymentReplicas", "apiServerReplicas", "uploadProxyReplicas"), _NOT_NEGATIVE),
}
FIELD_RULES["ClaimSpec"] = FIELD_RULES["StorageSpec"]


def apply_rules(model: str, schema: Schema) -> Schema:
    """An object's schema with the rules and limits of its model."""
    fields = FIELD_RULES.get(model, {})
    rules = [rule.to_dict() for rule in MODEL_RULES.get(model, ())]
    made = dict(schema)
    if fields:
        made["properties"] = {
            name: _limited(part, fields[name]) if name in fields else part
            for name, part in schema["properties"].items()
        }
    if rules:
        made[RULES] = [*schema.get(RULES, []), *rules]
    return made


def _limited(schema: Schema, limits: Schema) -> Schema:
    if "items" in limits:
        return schema | {"items": schema["items"] | limits["items"]}
    return schema | limits


# --- what may not change ----------------------------------------------------------------------------------------

_ESCAPED = {"namespace"}
"""Field names that are words of the language."""
_NOT_COMPARED = {"apiVersion", "kind", "metadata", "status", "createdBy"}
_BY_VALUE = "resources"
"""Compared by what stands in them: Go writes empty ones, and sizes in a notation of its own."""
_BY_STAGE = {"checkpoints", "finalCheckpoint"}
_ABSENT_IS_FALSE = {"finalCheckpoint"}


def freeze(schema: Schema, message: str) -> Schema:
    """An object's schema with rules that let nothing in it change, at any depth.

    Clients written in Go write a field back as null, empty or in another notation that they read otherwise; as in
    `cdi.api.rules.update`, what means the same is the same.  The stages of a warm import may go on.
    """
    made = dict(schema)
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    made["properties"] = {
        name: freeze(part, message) if "properties" in part and name not in {*_NOT_COMPARED, _BY_VALUE} else part
        for name, part in properties.items()
    }
    staged = properties.keys() >= _BY_STAGE
    held = [
        expression
        for name, part in properties.items()
        if name not in _NOT_COMPARED and not (staged and name in _BY_STAGE)
        for expression in _same(name, part, required=name in required)
    ]
    if staged:
        stages = " && ".join(
            f"({expression})" for name in sorted(_BY_STAGE) for expression in _same(name, properties[name])
        )
        held.append(f"({_WARM} && has(self.checkpoints) && size(self.checkpoints) > 0) || ({stages})")
    if held:
        rule = Rule(rule=" && ".join(f"({each})" for each in held), message=message)
        made[RULES] = [*schema.get(RULES, []), rule.to_dict()]
    return made


def _same(name: str, schema: Schema, *, required: bool = False) -> Iterator[str]:
    field = f"__{name}__" if name in _ESCAPED else name
    new, old = f"self.{field}", f"oldSelf.{field}"
    match schema.get("type"):
        case "object" if name == _BY_VALUE:
            sized = {side: _has_size(side) for side in ("self", "oldSelf")}
            yield f"({sized['self']}) == ({sized['oldSelf']})"
            yield (
                f"!({sized['self']}) || !({sized['oldSelf']}) || "
                f"{_amount(_size('self'))}.compareTo({_amount(_size('oldSelf'))}) == 0"
            )
        case "object" if "properties" in schema or "additionalProperties" not in schema:
            if not required:
                yield f"has({new}) == has({old})"
        case "string" if required:
            yield f"{new} == {old}"
        case "string":
            yield _defaulted(new, old, "''")
        case "array":
            yield _defaulted(new, old, "[]")
        case "object":
            yield _defaulted(new, old, "{}")
        case "boolean" if name in _ABSENT_IS_FALSE:
            yield _defaulted(new, old, "false")
        case _:
            yield f"has({new}) == has({old}) && (!has({new}) || !has({old}) || {new} == {old})"


def _defaulted(new: str, old: str, empty: str) -> str:
    return f"(has({new}) ? {new} : {empty}) == (has({old}) ? {old} : {empty})"
