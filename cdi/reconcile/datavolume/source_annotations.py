"""Sources of imports as annotations of a PVC, with the names that KubeVirt's CDI uses.

Users write them on a PVC that requests an import. The controller writes them on prime PVCs, so that an import continues
when the object that named its source is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from cdi.api.names import (
    ANN_CERT_CONFIG_MAP,
    ANN_CHECKSUM,
    ANN_ENDPOINT,
    ANN_EXTRA_HEADERS,
    ANN_INSECURE_SKIP_VERIFY,
    ANN_REGISTRY_ARCHITECTURE,
    ANN_REGISTRY_IMAGE_STREAM,
    ANN_REGISTRY_IMPORT_METHOD,
    ANN_SECRET,
    ANN_SECRET_EXTRA_HEADERS,
    ANN_SOURCE,
)
from cdi.api.sources import SourceBlank, SourceGcs, SourceHttp, SourceRegistry, SourceS3

NO_SOURCE = "none"
"""Value of `ANN_SOURCE` for a blank disk."""


def read_source(annotations: Mapping[str, str]) -> dict[str, Any]:
    """Return a DataVolume's ``spec.source``; an unknown kind counts as http, as in KubeVirt's CDI."""
    kind = annotations.get(ANN_SOURCE) or "http"
    if kind == NO_SOURCE:
        return {"blank": {}}
    url = annotations.get(ANN_ENDPOINT, "")
    common = {"url": url, "secretRef": annotations.get(ANN_SECRET)}
    if kind == "gcs":
        return {kind: _given(common)}
    common["certConfigMap"] = annotations.get(ANN_CERT_CONFIG_MAP)
    if kind == "s3":
        return {kind: _given(common)}
    if kind == "registry":
        architecture = annotations.get(ANN_REGISTRY_ARCHITECTURE)
        stream = annotations.get(ANN_REGISTRY_IMAGE_STREAM)
        registry = {
            **common,
            "url": url or None,
            "imageStream": stream if not url else None,
            "pullMethod": annotations.get(ANN_REGISTRY_IMPORT_METHOD),
            "platform": {"architecture": architecture} if architecture else None,
        }
        return {kind: _given(registry)}
    if kind in ("imageio", "vddk"):
        return {kind: _given({"url": url, "diskId": "" if kind == "imageio" else None})}
    http = {
        **common,
        "checksum": annotations.get(ANN_CHECKSUM),
        "insecureSkipVerify": True if annotations.get(ANN_INSECURE_SKIP_VERIFY) == "true" else None,
        "extraHeaders": _numbered(annotations, ANN_EXTRA_HEADERS),
        "secretExtraHeaders": _numbered(annotations, ANN_SECRET_EXTRA_HEADERS),
    }
    return {"http": _given(http)}


def write_source(source: SourceHttp | SourceS3 | SourceGcs | SourceRegistry | SourceBlank) -> dict[str, str]:
    """Return the annotations of a source, from which `read_source` returns an equal one."""
    match source:
        case SourceBlank():
            return {ANN_SOURCE: NO_SOURCE}
        case SourceGcs():
            wanted = {ANN_SOURCE: "gcs", ANN_ENDPOINT: source.url, ANN_SECRET: source.secret_ref}
        case SourceS3():
            wanted = {
                ANN_SOURCE: "s3",
                ANN_ENDPOINT: source.url,
                ANN_SECRET: source.secret_ref,
                ANN_CERT_CONFIG_MAP: source.cert_config_map,
            }
        case SourceRegistry():
            wanted = {
                ANN_SOURCE: "registry",
                ANN_ENDPOINT: source.url,
                ANN_REGISTRY_IMAGE_STREAM: source.image_stream,
                ANN_REGISTRY_IMPORT_METHOD: source.pull_method,
                ANN_REGISTRY_ARCHITECTURE: source.platform.architecture if source.platform is not None else None,
                ANN_SECRET: source.secret_ref,
                ANN_CERT_CONFIG_MAP: source.cert_config_map,
            }
        case SourceHttp():
            wanted = {
                ANN_SOURCE: "http",
                ANN_ENDPOINT: source.url,
                ANN_SECRET: source.secret_ref,
                ANN_CERT_CONFIG_MAP: source.cert_config_map,
                ANN_CHECKSUM: source.checksum,
                ANN_INSECURE_SKIP_VERIFY: "true" if source.insecure_skip_verify else None,
                **_enumerated(ANN_EXTRA_HEADERS, source.extra_headers),
                **_enumerated(ANN_SECRET_EXTRA_HEADERS, source.secret_extra_headers),
            }
        case _:
            assert_never(source)
    return {name: text for name, text in wanted.items() if text}


def _enumerated(prefix: str, items: list[str] | None) -> dict[str, str | None]:
    return {f"{prefix}.{number}": text for number, text in enumerate(items or ())}


def _numbered(annotations: Mapping[str, str], prefix: str) -> list[str] | None:
    """Return the values of ``prefix.0``, ``prefix.1`` and so on, in that order."""
    found = {}
    for name, text in annotations.items():
        head, dot, number = name.rpartition(".")
        if dot and head == prefix and number.isascii() and number.isdigit() and len(number) < 6:
            found[int(number)] = text
    return [found[number] for number in sorted(found)] or None


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
