"""Validation rules for several fields of a model."""

from __future__ import annotations

from cdi.api.cel.expressions import REQUIRED, WARM, Rule, amount, has_size, size_of

_FILLED = " || ".join(
    f"(has(self.{form}) && (has(self.{form}.dataSource) || has(self.{form}.dataSourceRef)))"
    for form in ("pvc", "storage")
)
"""Expression for a volume that is filled by something other than CDI."""
_CLONE = "has(self.sourceRef) || (has(self.source) && (has(self.source.pvc) || has(self.source.snapshot)))"


def _sizes(what: str) -> tuple[Rule, ...]:
    """Return the rules for the size of a claim, if it has one."""
    here = size_of("self")
    absent = f"!({has_size('self')})"
    field = ".resources.requests"
    return (
        Rule(
            rule=f"{absent} || {amount(here)}.isGreaterThan(quantity('0'))",
            message=f"{what} size can't be equal or less than zero",
            field=field,
        ),
        Rule(
            rule=f"{absent} || !{amount(here)}.isGreaterThan(quantity('0')) || "
            f"!{amount(here)}.isLessThan(quantity('1Mi'))",
            message=f"{what} size is smaller than the minimum of 1Mi",
            field=field,
        ),
    )


def _content(source: str) -> tuple[Rule, ...]:
    """Return the rules for sources that cannot be archives; `source` is the expression of the source."""
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
    rule=f"!has(self.checkpoints) || size(self.checkpoints) == 0 || ({WARM})",
    message="checkpoints are for the sources imageio and vddk only",
    field=".checkpoints",
)


def _one_source(members: tuple[str, ...], what: str) -> tuple[Rule, ...]:
    given = "[" + ", ".join(f"has(self.{member})" for member in members) + "].filter(given, given).size()"
    return (
        Rule(rule=f"{given} > 0", message=f"Missing {what} source", reason=REQUIRED),
        Rule(rule=f"{given} < 2", message=f"Multiple {what} sources; exactly one is allowed"),
    )


def _needed(what: str, *members: str, unless: str = "false") -> tuple[Rule, ...]:
    return tuple(
        Rule(
            rule=f"({unless}) || (has(self.{name}) && self.{name} != '')",
            message=f"{what} is not valid: {name} is missing",
            field=f".{name}",
            reason=REQUIRED,
        )
        for name in members
    )


def _reference(member: str, what: str, *, namespace_optional: bool = False) -> Rule:
    """Return the rule for a reference to another object: its name, and its namespace unless that is optional."""
    named = f"self.{member}.name != ''"
    placed = "" if namespace_optional else f"self.{member}.__namespace__ != '' && "
    missing = "the name is missing" if namespace_optional else "namespace and name are needed"
    return Rule(
        rule=f"!has(self.{member}) || ({placed}{named})",
        message=f"{what} is not valid: {missing}",
        field=f".{member}",
        reason=REQUIRED,
    )


def _population(member: str, what: str) -> tuple[Rule, ...]:
    """Return the rules for a reference to what fills the volume instead of CDI."""
    reference = f"self.{member}"
    needed = {
        "name": f"{reference}.name != ''",
        "kind": f"{reference}.kind != ''",
        "apiGroup when kind is not 'PersistentVolumeClaim'": f"{reference}.kind == 'PersistentVolumeClaim' || "
        f"(has({reference}.apiGroup) && {reference}.apiGroup != '')",
    }
    return tuple(
        Rule(rule=f"!has({reference}) || {met}", message=f"{what} {name}", field=f".{member}", reason=REQUIRED)
        for name, met in needed.items()
    )


_POPULATED = (
    *_population("dataSource", "DataSource"),
    *_population("dataSourceRef", "DataSourceRef"),
    Rule(
        rule="!has(self.dataSourceRef) || !has(self.dataSourceRef.__namespace__) || "
        "self.dataSourceRef.__namespace__ == ''",
        message="Invalid value: DataSourceRef namespace not supported: "
        "the object has to be in the namespace of the volume",
        field=".dataSourceRef",
    ),
    Rule(
        rule="!has(self.dataSource) || !has(self.dataSourceRef) || "
        "(self.dataSource.kind == self.dataSourceRef.kind && self.dataSource.name == self.dataSourceRef.name && "
        "(has(self.dataSource.apiGroup) ? self.dataSource.apiGroup : '') == "
        "(has(self.dataSourceRef.apiGroup) ? self.dataSourceRef.apiGroup : ''))",
        message="DataSourceRef and DataSource must match",
    ),
)


_IMPORTED = ("http", "s3", "gcs", "registry", "blank", "imageio", "vddk")

MISSING_SPEC = {
    "DataVolume": Rule(rule="has(self.spec)", message="Missing Data volume source", field=".spec", reason=REQUIRED),
}
"""Rules that report an object without a spec, by kind, instead of the schema.

The API server reports a member that the schema requires together with a note that it has checked no rules. Programs
look for the first part with nothing around it.
"""

MODEL_RULES: dict[str, tuple[Rule, ...]] = {
    "DataVolumeSpec": (
        Rule(
            rule="has(self.pvc) || has(self.storage)",
            message="Missing Data volume PVC: give storage or pvc",
            field=".storage",
            reason=REQUIRED,
        ),
        Rule(
            rule="!(has(self.pvc) && has(self.storage))",
            message="Duplicate storage definition, both target storage and target pvc defined",
            field=".storage",
        ),
        Rule(
            rule=f"!has(self.pvc) || ({has_size('self.pvc')})",
            message="PVC size is missing",
            field=".pvc",
            reason=REQUIRED,
        ),
        Rule(
            rule=f"!has(self.storage) || {_CLONE} || ({has_size('self.storage')})",
            message="Storage size is missing",
            field=".storage",
            reason=REQUIRED,
        ),
        Rule(
            rule=f"!({_FILLED}) || (!has(self.source) && !has(self.sourceRef))",
            message="External population is incompatible with Source and SourceRef",
        ),
        Rule(
            rule=f"{_FILLED} || has(self.source) != has(self.sourceRef)",
            message="Data volume should have either Source or SourceRef, or be externally populated",
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
        Rule(rule="has(self.source)", message="Missing VolumeImport source", field=".source", reason=REQUIRED),
        *_content("self.source"),
        _STAGES,
        Rule(
            rule=f"!has(self.checkpoints) || size(self.checkpoints) == 0 || !({WARM}) || "
            "(has(self.targetClaim) && self.targetClaim != '')",
            message="Unable to do multi-stage import without specifying a target claim",
            field=".targetClaim",
            reason=REQUIRED,
        ),
    ),
    "DataVolumeSource": (
        *_one_source((*_IMPORTED, "pvc", "upload", "snapshot"), "Data volume"),
        _reference("pvc", "spec.source.PVC source PVC"),
        _reference("snapshot", "spec.source.Snapshot source snapshot"),
    ),
    "ImportSource": _one_source(_IMPORTED, "VolumeImport"),
    "ClaimSpec": (
        *_sizes("PVC"),
        Rule(
            rule="has(self.accessModes) && size(self.accessModes) > 0",
            message="at least 1 access mode is required",
            field=".accessModes",
            reason=REQUIRED,
        ),
        Rule(
            rule="!has(self.accessModes) || size(self.accessModes) < 2",
            message="PVC multiple accessModes: exactly 1 access mode is allowed",
            field=".accessModes",
        ),
        *_POPULATED,
    ),
    "StorageSpec": (*_sizes("Storage"), *_POPULATED),
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
        *_needed("spec.source.Imageio source Imageio", "secretRef", "diskId"),
        *_needed(
            "spec.source.Imageio source Imageio",
            "certConfigMap",
            unless="has(self.insecureSkipVerify) && self.insecureSkipVerify",
        ),
    ),
    "SourceVddk": (
        Rule(
            rule="has(self.url) && self.url != ''",
            message="spec.source source URL is empty",
            field=".url",
            reason=REQUIRED,
        ),
        *_needed("spec.source.VDDK source VDDK", "secretRef", "uuid", "backingFile", "thumbprint"),
    ),
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
            reason=REQUIRED,
        ),
    ),
    "DataSourceSource": (
        Rule(
            rule="[has(self.pvc), has(self.snapshot), has(self.dataSource)].filter(given, given).size() < 2",
            message="Multiple DataSource sources; exactly one is allowed",
        ),
        # Go clients write an empty namespace, which stands for that of the DataSource.
        *(
            _reference(member, f"source {member}", namespace_optional=True)
            for member in ("pvc", "snapshot", "dataSource")
        ),
    ),
    "DataImportCronSpec": (
        Rule(
            rule="has(self.template.spec.source) && (has(self.template.spec.source.registry) || "
            "has(self.template.spec.source.pvc) || has(self.template.spec.source.http) || "
            "has(self.template.spec.source.s3) || has(self.template.spec.source.gcs))",
            message="Missing source",
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
            reason=REQUIRED,
        ),
    ),
    "TransferTarget": (
        Rule(
            rule="(has(self.__namespace__) && self.__namespace__ != '') || (has(self.name) && self.name != '')",
            message="Target namespace and/or target name must be supplied",
            reason=REQUIRED,
        ),
    ),
    "TlsSecurityProfile": (
        Rule(
            rule="!has(self.type) || self.type != 'Custom' || has(self.custom)",
            message="type Custom needs its settings",
            field=".custom",
            reason=REQUIRED,
        ),
    ),
}  # fmt: skip
