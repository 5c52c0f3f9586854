"""Validation of sources, each with the fields that its kind requires."""

from __future__ import annotations

from typing import assert_never

from cdi.api.datavolume import ContentType
from cdi.api.digest import Digest
from cdi.api.errors import ChecksumInvalid
from cdi.api.names import is_dns_label
from cdi.api.rules.problems import (
    Problem,
    Problems,
    each,
    has_control_characters,
    object_name,
    optional_name,
    truncate,
)
from cdi.api.rules.urls import GCS_SCHEMES, HTTP_SCHEMES, S3_SCHEMES, check_registry_url, check_url
from cdi.api.sources import (
    AnySource,
    ImportSource,
    SourceBlank,
    SourceGcs,
    SourceHttp,
    SourceImageio,
    SourceKind,
    SourcePvc,
    SourceRegistry,
    SourceS3,
    SourceSnapshot,
    SourceUpload,
    SourceVddk,
)

PULL_METHODS = ("node", "pod")
WARM_SOURCES = {SourceKind.IMAGEIO, SourceKind.VDDK}
"""Sources that can be imported in stages (warm import)."""


def check_one_source(source: ImportSource | None, field: str, what: str) -> Problems:
    """Yield a problem unless exactly one member is set, and the problems of that member.

    Args:
        source: The source to check.
        field: Path of the source for messages.
        what: Name of the object in messages (Data volume, VolumeImport).
    """
    given = list(source.given()) if source else []
    if not given:
        yield Problem(field=field, message=f"Missing {what} source")
    elif len(given) > 1:
        names = ", ".join(kind.value for kind, _ in given)
        yield Problem(field=field, message=f"Multiple {what} sources: {names}; exactly one is allowed")
    else:
        kind, member = given[0]
        yield from check_source(member, f"{field}.{kind.value}")


def check_source(source: AnySource, field: str) -> Problems:
    """Yield the problems of one member of a source.

    Messages begin with the path of the source, as KubeVirt's CDI spells it.
    """
    parent = field.rpartition(".")[0]
    match source:
        case SourceHttp():
            yield from check_url(source.url, HTTP_SCHEMES, f"{field}.url", parent)
            yield from _checksum(source.checksum, f"{field}.checksum")
            yield from each(source.extra_headers, f"{field}.extraHeaders", _header)
            yield from each(source.secret_extra_headers, f"{field}.secretExtraHeaders", _secret)
            yield from _references(source, field)
        case SourceS3():
            yield from check_url(source.url, S3_SCHEMES, f"{field}.url", parent)
            yield from _references(source, field)
        case SourceGcs():
            yield from check_url(source.url, GCS_SCHEMES, f"{field}.url", parent)
            yield from optional_name(source.secret_ref, f"{field}.secretRef", "Secret")
        case SourceRegistry():
            yield from _registry(source, field)
        case SourceImageio():
            yield from _needed(
                field,
                f"{parent}.Imageio source Imageio",
                secretRef=source.secret_ref,
                diskId=source.disk_id,
                **({} if source.insecure_skip_verify else {"certConfigMap": source.cert_config_map}),
            )
            yield from check_url(source.url, HTTP_SCHEMES, f"{field}.url", parent)
            yield from _references(source, field)
        case SourceVddk():
            yield from _needed(
                field,
                f"{parent}.VDDK source VDDK",
                secretRef=source.secret_ref,
                uuid=source.uuid,
                backingFile=source.backing_file,
                thumbprint=source.thumbprint,
            )
            yield from check_url(source.url, HTTP_SCHEMES, f"{field}.url", parent)
            yield from _references(source, field)
            yield from optional_name(source.extra_args, f"{field}.extraArgs", "ConfigMap")
        case SourcePvc():
            yield from check_reference(source.namespace, source.name, field, "source PVC", f"{parent}.PVC ")
        case SourceSnapshot():
            yield from check_reference(source.namespace, source.name, field, "source snapshot", f"{parent}.Snapshot ")
        case SourceUpload() | SourceBlank():
            return
        case _:
            assert_never(source)


def check_content_type(content_type: str | None, source: ImportSource | None, field: str) -> Problems:
    """Yield a problem if the content type is unknown, or not available from the source."""
    if content_type and content_type not in tuple(ContentType):
        yield Problem(
            field=field,
            message=f"ContentType not one of: {', '.join(ContentType)}; it is {truncate(content_type)!r}",
        )
        return
    if content_type != ContentType.ARCHIVE or source is None:
        return
    if source.blank is not None:
        yield Problem(field=field, message="SourceType cannot be blank and the contentType be archive")
    if source.registry is not None:
        yield Problem(field=field, message="ContentType must be kubevirt when Source is Registry")


def check_reference(
    namespace: str, name: str, field: str, what: str, prefix: str = "", *, namespace_optional: bool = False
) -> Problems:
    """Yield the problems of a reference that must have a name, and a namespace unless that is optional.

    Args:
        namespace: The namespace.
        name: The name.
        field: Path of the reference for messages.
        what: What is referred to, for messages.
        prefix: What the message about a missing part begins with.
        namespace_optional: Whether an empty namespace stands for that of the object with the reference.
    """
    if not name or not (namespace or namespace_optional):
        missing = "the name is missing" if namespace_optional else "namespace and name are needed"
        yield Problem(field=field, message=f"{prefix}{what} is not valid: {missing}")
        return
    if namespace and not is_dns_label(namespace):
        yield Problem(
            field=f"{field}.namespace", message=f"{truncate(namespace)!r} is not a DNS label of 1 to 63 characters"
        )
    yield from object_name(name, f"{field}.name", what)


def _registry(source: SourceRegistry, field: str) -> Problems:
    if (source.url is None) == (source.image_stream is None):
        yield Problem(field=field, message="Source registry should have either URL or ImageStream")
    elif source.url is not None:
        yield from check_registry_url(source.url, f"{field}.url")
    elif not source.image_stream:
        yield Problem(field=f"{field}.imageStream", message="Source registry ImageStream is not valid: it is empty")
    if source.pull_method and source.pull_method not in PULL_METHODS:
        yield Problem(
            field=f"{field}.pullMethod",
            message=f'ImportMethod {truncate(source.pull_method)} is neither pod, node or ""',
        )
    elif source.image_stream and source.pull_method != "node":
        yield Problem(
            field=f"{field}.pullMethod",
            message="Source registry ImageStream is supported only with node pull import method",
        )
    yield from _references(source, field)
    architecture = source.platform.architecture if source.platform else None
    if architecture and (has_control_characters(architecture) or not architecture.isascii() or " " in architecture):
        yield Problem(
            field=f"{field}.platform.architecture",
            message=f"{truncate(architecture)!r} is not an architecture such as amd64",
        )


def _references(source: SourceHttp | SourceS3 | SourceRegistry | SourceImageio | SourceVddk, field: str) -> Problems:
    yield from optional_name(source.secret_ref, f"{field}.secretRef", "Secret")
    yield from optional_name(source.cert_config_map, f"{field}.certConfigMap", "ConfigMap")


def _needed(field: str, what: str, **values: str | None) -> Problems:
    for name, value in values.items():
        if not value:
            yield Problem(field=f"{field}.{name}", message=f"{what} is not valid: {name} is missing")


def _checksum(checksum: str | None, field: str) -> Problems:
    if not checksum:
        return
    try:
        Digest.parse(checksum)
    except ChecksumInvalid as error:
        yield Problem(field=field, message=f"Invalid checksum format: {error.what}; {error.remedy}")


def _header(line: str, field: str) -> Problems:
    # The line may contain a token, so the message does not repeat it.
    name, colon, _ = line.partition(":")
    if not colon or not name.strip() or has_control_characters(line.replace("\t", " ")):
        yield Problem(field=field, message="it is not one whole header line, 'Name: value'")


def _secret(name: str, field: str) -> Problems:
    yield from object_name(name, field, "Secret")
