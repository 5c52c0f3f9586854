"""Validation rules and length limits of single fields."""

from __future__ import annotations

from cdi.api.cel.expressions import LABEL, REQUIRED, RULES, Rule, Schema, one_of, words
from cdi.api.cel.schedule import SCHEDULE
from cdi.api.claims import AccessMode, VolumeMode
from cdi.api.names import MAX_LABEL, MAX_NAME
from cdi.api.rules.urls import GCS_SCHEMES, HTTP_SCHEMES, MAX_URL, S3_SCHEMES
from cdi.api.schedule import MAX_LENGTH


def _name(what: str, *, required: bool = False, limit: int = MAX_NAME) -> Schema:
    """Return the rules for the name of another object, a DNS subdomain or DNS label."""
    pattern = f"^{LABEL}$" if limit == MAX_LABEL else rf"^{LABEL}(\\.{LABEL})*$"
    form = f"a DNS label of 1 to {MAX_LABEL} characters" if limit == MAX_LABEL else "a DNS subdomain"
    rules = [Rule(rule=f"self == '' || self.matches('{pattern}')", message=f"Name of {what} is not {form}")]
    if required:
        rules.insert(
            0,
            Rule(rule="self != ''", message=f"the name of {what} is missing", reason=REQUIRED),
        )
    return {"maxLength": limit, RULES: [rule.to_dict() for rule in rules]}


def _word(*values: str, message: str = "") -> Schema:
    rule = Rule(
        rule=one_of(values),
        message=message or f"Unsupported value: supported values: {words(values)}",
        reason="" if message else "FieldValueInvalid",
    )
    return {"maxLength": MAX_NAME, RULES: [rule.to_dict()]}


_AUTHORITY = r"([^/?#]*@)?(\\[[^\\]/\\s]+\\]|[^/?#@:\\s\\[\\]]+)(:[0-9]{0,5})?([/?#]|$)"


_SUBJECT = "spec.source"
"""What KubeVirt's CDI begins its messages about URLs with."""
_HAS_SCHEME = "self.matches('^[A-Za-z][-A-Za-z0-9+.]*:')"


def _url(schemes: tuple[str, ...]) -> Schema:
    web = [scheme for scheme in schemes if scheme in HTTP_SCHEMES]
    buckets = [scheme for scheme in schemes if scheme not in HTTP_SCHEMES]
    said = ", ".join(f"{scheme}://" for scheme in schemes[:-1]) + f" or {schemes[-1]}://"
    rules = [
        Rule(rule="self != ''", message=f"{_SUBJECT} source URL is empty", reason=REQUIRED),
        Rule(
            rule=f"self == '' || {_HAS_SCHEME}",
            message=f"{_SUBJECT} Invalid source URL: it has no scheme; it begins with {said}",
        ),
        Rule(
            rule=f"!{_HAS_SCHEME} || self.matches('^(?i)({'|'.join(schemes)}):')",
            message=f"{_SUBJECT} Invalid source URL scheme: it does not begin with {said}",
        ),
        Rule(
            rule=f"!self.matches('^(?i)({'|'.join(web)}):') || self.matches('^(?i)({'|'.join(web)})://{_AUTHORITY}')",
            message=f"{_SUBJECT} Invalid source URL: it names no host",
        ),
        Rule(
            rule=r"!self.matches('[\\x00-\\x1f\\x7f\\\\]')",
            message=f"{_SUBJECT} Invalid source URL: it holds control characters or a backslash",
        ),
    ]
    rules += [
        Rule(
            rule=f"!self.matches('^(?i){scheme}:') || self.matches('^(?i){scheme}://[^/?#]+/+[^/?#]')",
            message=f"{_SUBJECT} Invalid source URL: it is not of the form {scheme}://bucket/object",
        )
        for scheme in buckets
    ]
    return {"maxLength": MAX_URL, RULES: [rule.to_dict() for rule in rules]}


_REGISTRY_URL: Schema = {
    "maxLength": MAX_URL,
    RULES: [
        Rule(
            rule="self != ''", message="Illegal registry source URL scheme: source URL is empty", reason=REQUIRED
        ).to_dict(),
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

_ACCESS_MODES: Schema = {"items": {"enum": sorted(str(mode) for mode in AccessMode)}}
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
                    reason=REQUIRED,
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
                Rule(rule="self != ''", message="Missing sourceRef kind", reason=REQUIRED).to_dict(),
                Rule(
                    rule="self in ['', 'DataSource']",
                    message="Unsupported sourceRef kind, currently only DataSource is supported",
                ).to_dict(),
            ],
        },
        "name": {
            "maxLength": MAX_NAME,
            RULES: [
                Rule(rule="self != ''", message="Missing sourceRef name", reason=REQUIRED).to_dict(),
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
        "garbageCollect": _word("Outdated", "Never", message="Illegal GarbageCollect value"),
        "retentionPolicy": {"maxLength": MAX_NAME},
        "importsToKeep": {RULES: [Rule(rule="self >= 0", message="Illegal ImportsToKeep value").to_dict()]},
        "managedDataSource": {
            "maxLength": MAX_NAME,
            RULES: [
                Rule(
                    rule=f"size(self) > {MAX_LABEL} || self.matches('^{LABEL}(\\\\.{LABEL})*$')",
                    message="Illegal ManagedDataSource value",
                ).to_dict(),
                Rule(
                    rule=f"size(self) <= {MAX_LABEL}", message=f"Name cannot be longer than {MAX_LABEL} characters"
                ).to_dict(),
            ],
        },
        "serviceAccountName": _name("ServiceAccount"),
        "schedule": {
            "maxLength": MAX_LENGTH,
            RULES: [Rule(rule=f"self.matches('{SCHEDULE}')", message="Illegal cron schedule").to_dict()],
        },
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
                    message_expression="'Unsupported kind \"' + self + '\": DataVolume or PersistentVolumeClaim'",
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
