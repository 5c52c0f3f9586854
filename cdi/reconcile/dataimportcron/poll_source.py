"""The source of a DataImportCron as polls see it: who polls it, with which job, or what the controller reads itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from cdi.api.datavolume import DataVolume
from cdi.api.errors import CdiError, InvalidManifest, SourceNotFound, SourceNotSupported, SourceProtocolError
from cdi.api.meta import ObjectMeta
from cdi.api.policy import PREFIX as POLICY_PREFIX
from cdi.api.poll import PollResult
from cdi.api.sources import SourceGcs, SourceHttp, SourcePvc, SourceRegistry, SourceS3
from cdi.reconcile.dataimportcron.context import Body, CronContext
from cdi.reconcile.dataimportcron.poll_observed import failed
from cdi.reconcile.pods.job import PollSpec, prepare_poll
from cdi.reconcile.types import Pending

_MIN_DIGEST: Final = 12
"""Hex digits of a digest that are part of a version's name."""

PollMethod = Literal["job", "node", "stream", "claim"]
"""Who polls: a worker (a Job, or a process on one machine), a node, or the controller (image streams and PVCs)."""


def source_of(context: CronContext) -> Any:
    """Return the source of the template; None unless there is exactly one."""
    source = context.cron.spec.template.spec.source
    given = [member for _, member in source.given()] if source is not None else []
    return given[0] if len(given) == 1 else None


def method_of(context: CronContext) -> PollMethod:
    """Return who polls the source."""
    match source_of(context):
        case SourcePvc():
            return "claim"
        case SourceRegistry() as source if source.url is None and source.image_stream is not None:
            return "stream"
        case SourceRegistry() as source if source.pull_method == "node" and context.platform.cluster:
            return "node"
        case _:
            return "job"


def keeps_cron_job(context: CronContext) -> bool:
    """Return whether the DataImportCron has a CronJob."""
    return context.platform.cluster and method_of(context) == "job" and bool(context.cron.spec.schedule)


def prepared_poll(context: CronContext) -> PollSpec | Pending:
    """Return the worker's poll, or what it is waiting for; raise `CdiError` if the template or policy is invalid."""
    source = source_of(context)
    if not isinstance(source, SourceHttp | SourceS3 | SourceGcs | SourceRegistry):
        raise InvalidManifest("the template has no source that can be polled", where="spec.template.spec.source")
    policy = {name: text for name, text in context.annotations.items() if name.startswith(POLICY_PREFIX)}
    template = DataVolume(
        metadata=ObjectMeta(namespace=context.namespace, name=context.name, annotations=policy),
        spec=context.cron.spec.template.spec,
    )
    return prepare_poll(
        context.uid,
        template,
        source,
        context.objects,
        context.config,
        context.platform,
        inputs=context.poll_inputs,
    )


def node_image(context: CronContext) -> tuple[str, str | None]:
    """Return the image that a node pulls, and its architecture if one is wanted; raise `InvalidManifest`."""
    source = source_of(context)
    if not isinstance(source, SourceRegistry) or not source.url:
        raise InvalidManifest("pullMethod node requires the image's url", where="spec.template.spec.source.registry")
    image = source.url.strip().removeprefix("docker://")
    return image, source.platform.architecture if source.platform is not None else None


# --- sources that the controller reads ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectPoll:
    """Result of reading a PVC or an image stream."""

    result: PollResult
    docker_reference: str | None = None
    """Docker reference of the image, for an image stream."""


def poll_directly(context: CronContext) -> DirectPoll | None:
    """Read the source; return None if it has not been read from the API server yet."""
    source = source_of(context)
    try:
        if isinstance(source, SourcePvc):
            return DirectPoll(result=_poll_claim(context, source))
        assert isinstance(source, SourceRegistry)
        return _poll_image_stream(context, source.image_stream or "")
    except CdiError as error:
        return DirectPoll(result=failed(context.uid, error))


def _poll_claim(context: CronContext, source: SourcePvc) -> PollResult:
    namespace = source.namespace or context.namespace
    claim = context.objects.claim(namespace, source.name)
    if claim is None or claim.deleting:
        raise SourceNotFound(
            f"the source PVC {namespace}/{source.name} does not exist", remedy="create it; the poll is repeated"
        )
    return PollResult(id=context.uid, digest=f"uid:{claim.uid}", identity="uid", size=claim.capacity)


def _poll_image_stream(context: CronContext, text: str) -> DirectPoll | None:
    if not context.platform.image_streams:
        raise SourceNotSupported(
            "image streams exist only in OpenShift clusters: this cluster has no API image.openshift.io/v1",
            where="spec.template.spec.source.registry.imageStream",
            remedy="set the image's url",
        )
    name, tag = split_image_stream(text)
    stream = context.objects.image_stream(context.namespace, name)
    if stream is None:
        return None
    if stream.body is None:
        what, _, remedy = stream.failure.partition(". Try: ")
        raise SourceNotFound(what, remedy=remedy)
    digest, reference = newest_of_image_stream(stream.body, name, tag)
    result = PollResult(id=context.uid, digest=digest, resolved=f"docker://{reference}", identity="manifest")
    return DirectPoll(result=result, docker_reference=reference)


def split_image_stream(text: str) -> tuple[str, str]:
    """Return name and tag of ``name[:tag]``; an empty tag stands for the first one listed.

    Raises:
        InvalidManifest: The text has an empty part or several colons.

    """
    name, colon, tag = text.partition(":")
    if not name or ":" in tag or (colon and not tag):
        raise InvalidManifest(f"Illegal ImageStream name {text[:256]}", remedy="write it as name or name:tag")
    return name, tag


def newest_of_image_stream(stream: Body, name: str, tag: str) -> tuple[str, str]:
    """Return digest and Docker reference of the newest image of a tag.

    Raises:
        SourceNotFound: There is no such tag, or it has no image.
        SourceProtocolError: The digest is not one of an image.

    """
    tags = (stream.get("status") or {}).get("tags") or ()
    remedy = "import an image into the stream, or correct the tag; the poll is repeated"
    if not tags:
        raise SourceNotFound(f"ImageStream {name} has no tags", remedy=remedy)
    found = next((one for one in tags if one.get("tag") == tag), None) if tag else tags[0]
    if found is None:
        raise SourceNotFound(f"ImageStream {name} has no tag {tag}", remedy=remedy)
    items = found.get("items") or ()
    if not items:
        raise SourceNotFound(f"ImageStream {name} tag {tag} has no items", remedy=remedy)
    digest = str(items[0].get("image") or "")
    if not digest.startswith("sha256:"):
        raise SourceProtocolError("Digest has no supported prefix", where=digest[:100], remedy=remedy)
    if len(digest.removeprefix("sha256:")) < _MIN_DIGEST:
        raise SourceProtocolError("Digest is too short", where=digest[:100], remedy=remedy)
    return digest, str(items[0].get("dockerImageReference") or "")
