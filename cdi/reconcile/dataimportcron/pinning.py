"""Sources pinned to the digest of a version, so that an import gets the content that the poll found."""

from __future__ import annotations

from typing import Any, Final

from cdi.api.annotations import DESIRED_DIGEST, IMAGE_STREAM_REFERENCE
from cdi.reconcile.dataimportcron.context import CronContext

_SCHEME: Final = "docker://"


def follows_image_stream(context: CronContext) -> bool:
    """Return whether the source is an image stream."""
    source = context.cron.spec.template.spec.source
    registry = source.registry if source is not None else None
    return registry is not None and not registry.url and bool(registry.image_stream)


def is_pinnable(context: CronContext) -> bool:
    """Return whether the source still provides older images, by their digests."""
    source = context.cron.spec.template.spec.source
    return source is not None and source.registry is not None


def provides(context: CronContext, digest: str, desired: str | None) -> bool:
    """Return whether an import gets the content of a digest: by its digest, or because the source has it now.

    Args:
        context: The DataImportCron.
        digest: The digest of the version to import.
        desired: The digest that the source has now; empty or None if it is unknown.

    """
    return is_pinnable(context) or digest == desired


def image_reference(context: CronContext, digest: str, resolved: str | None) -> str:
    """Return the Docker reference of an image stream's image; empty if it is unknown.

    Args:
        context: The DataImportCron.
        digest: The digest of the image.
        resolved: The reference that the poll found together with this digest; None if it was not recorded.

    """
    newest = IMAGE_STREAM_REFERENCE.read(context.annotations) or ""
    if newest and DESIRED_DIGEST.read(context.annotations) == digest:
        return newest
    # An older image may be in another repository than the newest one.
    return (resolved or "").removeprefix(_SCHEME) or newest


def pin_source(context: CronContext, spec: dict[str, Any], digest: str, resolved: str | None) -> None:
    """Make the source in the spec of a DataVolume name the image with a digest; other sources are left unchanged."""
    source = dict(spec.get("source") or {})
    registry = source.get("registry")
    if registry is not None:
        url = registry.get("url")
        if follows_image_stream(context):
            reference = image_reference(context, digest, resolved)
            registry = {key: item for key, item in registry.items() if key != "imageStream"}
            url = f"{_SCHEME}{reference}"
        source["registry"] = {**registry, "url": pinned_url(url, digest)} if url else registry
    spec["source"] = source


def pinned_url(url: str, digest: str) -> str:
    """Return the URL of a registry image with a digest in place of its tag or of another digest."""
    scheme, separator, reference = url.partition("://")
    if scheme != "docker" or not separator or not digest.startswith("sha256:"):
        return url
    reference = reference.partition("@")[0]
    path, slash, last = reference.rpartition("/")
    return f"{scheme}://{path}{slash}{last.partition(':')[0]}@{digest}"
