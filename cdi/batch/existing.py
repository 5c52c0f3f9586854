"""State of an item's existing objects, and the decision what to do; without side effects."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cdi.api.annotation_types import annotations_of
from cdi.api.digest import Digest
from cdi.api.errors import CdiError, InvalidManifest, NotFound, Retry, SourceError, by_code
from cdi.api.image_facts import ImageFacts
from cdi.api.phases import Phase
from cdi.api.policy import CHECKSUM
from cdi.api.rules.update import check_update
from cdi.api.validation import parse
from cdi.batch.load import adopts
from cdi.batch.lockfile import Entry
from cdi.client.backend import Backend
from cdi.client.status_view import failure_of, phase_of
from cdi.explain.item import Item, size_of, with_size
from cdi.explain.prober import SourceVersion
from cdi.local.backend import LocalBackend
from cdi.store.base import Object


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingState:
    """The existing objects with an item's name; None if there are none."""

    datavolume: Object | None = None
    claim: Object | None = None
    occupied: bool = False
    """Whether the volume's directory contains files without a PVC."""

    @classmethod
    def of(cls, backend: Backend, item: Item) -> ExistingState:
        claim = _get(backend, "pvc", item)
        return cls(
            datavolume=_get(backend, "dv", item),
            claim=claim,
            occupied=claim is None and _holds_something(backend, item),
        )

    @property
    def phase(self) -> Phase | None:
        return None if self.datavolume is None else phase_of(self.datavolume)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Recorded facts about a volume's image; sizes are bytes."""

    validator: str | None = None
    length: int | None = None
    digest: str | None = None
    virtual_size: int | None = None
    disk_size: int | None = None
    """The disk's size on the volume when it was filled."""
    format: str | None = None

    def entry(self, item: Item) -> Entry:
        """Return the entry for the lock file."""
        return Entry(
            url=item.url or "",
            validator=self.validator,
            length=self.length,
            digest=self.digest,
            virtual_size=self.virtual_size,
            format=self.format,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Decision to import, because nothing exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace:
    """Decision to delete the existing objects, for this reason, and to import."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Decision to wait for an import that is running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Decision to keep the existing volume."""

    source_changed: bool = False
    """Whether the source has a different image by now."""


Decision = Create | Replace | Resume | Keep


def decide(
    item: Item, standing: ExistingState, facts: Facts, offer: SourceVersion | None, *, pin: Entry | None, update: bool
) -> Decision:
    """Decide what to do with `item`, after `conflict` and `not_as_pinned` found no problem.

    Args:
        item: The item.
        standing: The existing objects.
        facts: Facts about the existing volume.
        offer: The current version of the source, None if unknown.
        pin: The entry in the lock file if the batch is locked.
        update: Whether to replace outdated volumes.
    """
    if standing.datavolume is None:
        return Create()
    if differs(item, standing.datavolume):
        return Replace(why="it was imported from another source or with other settings")
    if standing.phase is Phase.FAILED or _is_without_source(standing.datavolume):
        return Replace(why="its last import failed")
    if standing.phase is not Phase.SUCCEEDED:
        return Resume()
    if standing.claim is None:
        return Replace(why="its volume does not exist any more")
    if pin is not None and pin_mismatch(item, facts, pin) is not None:
        return Replace(why="it does not match the lock file")
    if offer is None or not source_changed(facts, offer):
        return Keep()
    return Replace(why="the source has another image") if update else Keep(source_changed=True)


def conflict(item: Item, standing: ExistingState, *, update: bool) -> str | None:
    """Return why this item cannot be imported under its name, or None."""
    dv, claim = standing.datavolume, standing.claim
    if dv is not None and "deletionTimestamp" in dv["metadata"]:
        return f"{item.key} is being deleted; wait until it is deleted"
    if dv is not None:
        if update or standing.phase is Phase.FAILED or _is_without_source(dv) or not differs(item, dv):
            return None
        return (
            f"{item.key} exists and was imported from another source or with other settings; "
            "--update replaces it, or choose another name"
        )
    if claim is not None and "deletionTimestamp" not in claim["metadata"] and not adopts(item.manifest):
        return f"{item.claim} exists and has another owner; delete it, or choose another name"
    if standing.occupied:
        return f"files exist in the place of the volume {item.namespace}/{item.name}; remove them"
    return None


def _is_without_source(dv: Object) -> bool:
    """Return whether its last failure required intervention, which is assumed when a batch is run again."""
    failure = failure_of(dv)
    return failure is not None and failure.retry is Retry.ON_CHANGE and issubclass(by_code(failure.code), SourceError)


def differs(item: Item, dv: Object) -> bool:
    """Return whether the existing DataVolume has another spec; an unspecified size is no difference."""
    size = size_of(dv)
    wanted = with_size(item.manifest, size) if item.unsized and size is not None else item.manifest
    try:
        problems, _ = check_update(parse(dv), parse(wanted))
    except InvalidManifest:
        return True
    return bool(problems)


def source_changed(facts: Facts, offer: SourceVersion) -> bool:
    """Return whether the source's content has changed since the volume was imported, as far as is known."""
    if facts.validator is not None and offer.validator is not None:
        return facts.validator != offer.validator
    return facts.length is not None and offer.length is not None and facts.length != offer.length


# --- against the lock file ------------------------------------------------------------------------------------------


def pin_mismatch(item: Item, facts: Facts, pin: Entry) -> str | None:
    """Return how a volume differs from its pin, or None."""
    if item.is_registry:
        have, want = facts.validator, pin.validator
    else:
        have, want = facts.digest, pin.digest
    return None if have == want else f"the volume has {have or 'unknown content'}, but {want} is pinned"


def not_as_pinned(item: Item, pin: Entry | None, offer: SourceVersion | None) -> str | None:
    """Return how the source's version differs from the pin in the lock file, or None."""
    if pin is None:
        return "the lock file does not pin it"
    if pin.url != item.url:
        return f"{pin.url} is pinned, but the batch has {item.url}"
    if pinned_checksum(item, pin) is None:
        return "the lock file has no digest for it to verify the import with"
    if (contradiction := _checksums(item, pin)) is not None:
        return contradiction
    if offer is None:
        return None
    if pin.length is not None and offer.length is not None and pin.length != offer.length:
        return f"{pin.length} bytes are pinned, but the source has {offer.length} bytes"
    if pin.validator is not None and offer.validator is not None and pin.validator != offer.validator:
        return f"{pin.validator} is pinned, but the source has {offer.validator}"
    digest = Digest.parse(pin.digest) if pin.digest is not None else None
    for promised in offer.digests:
        if digest is not None and promised.algorithm == digest.algorithm and promised != digest:
            return f"{digest} is pinned, but the source announces {promised}"
    return None


def pinned_checksum(item: Item, pin: Entry) -> str | None:
    """Return the checksum that the import has to match: of the content, or of a container image's manifest."""
    text = pin.validator if item.is_registry else pin.digest
    try:
        return None if text is None else str(Digest.parse(text))
    except CdiError:
        return None


def _checksums(item: Item, pin: Entry) -> str | None:
    http = (item.manifest["spec"].get("source") or {}).get("http") or {}
    annotations = annotations_of(item.manifest)
    wanted, pinned = http.get("checksum") or annotations.get(CHECKSUM), pinned_checksum(item, pin)
    if not wanted or pinned is None or Digest.parse(wanted) == Digest.parse(pinned):
        return None
    return f"{pinned} is pinned, but the batch's checksum is {wanted}"


def _get(backend: Backend, kind: str, item: Item) -> Object | None:
    try:
        return backend.get(kind, item.namespace, item.name)
    except NotFound:
        return None


def _holds_something(backend: Backend, item: Item) -> bool:
    if not isinstance(backend, LocalBackend):
        return False
    try:
        with os.scandir(backend.home.volume(item.namespace, item.name)) as found:
            return next(found, None) is not None
    except OSError:
        return False


def facts_of(backend: Backend, item: Item, claim: Object | None) -> Facts:
    """Return the recorded facts about an item's volume, from its PVC and from its worker if that still exists."""
    if claim is None:
        return Facts()
    annotations = annotations_of(claim)
    progress = None
    if isinstance(backend, LocalBackend) and (body := _get(backend, "dv", item)) is not None:
        progress = backend.progress_of(body)
    length = progress.total if progress is not None and progress.phase == "done" and not item.is_registry else None
    image = ImageFacts.read(annotations)
    return Facts(
        validator=image.validator,
        length=length,
        digest=image.digest,
        virtual_size=image.virtual_size,
        disk_size=image.disk_size,
        format=image.format,
    )
