"""``cdi explain`` of DataImportCrons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cdi.api.annotation_types import annotations_of
from cdi.api.annotations import DESIRED_DIGEST
from cdi.api.errors import NotFound
from cdi.cli.inspect import size as words_of_size
from cdi.cli.session import Session
from cdi.store.base import Key, Object

if TYPE_CHECKING:
    from cdi.explain.cron import CronFacts


def stand_ins(session: Session, bodies: Iterable[Object]) -> list[tuple[Object, CronFacts]]:
    """Return for each DataImportCron among valid objects its facts and the DataVolume that it would create next.

    Raises:
        InvalidManifest: A setting is invalid.
    """
    from cdi.explain.cron import cron_facts, data_volume_of

    zone = UTC if session.in_cluster else datetime.now().astimezone().tzinfo or UTC
    found = []
    for body in bodies:
        if body["kind"] != "DataImportCron":
            continue
        wanted = None
        with suppress(NotFound):
            stored = session.store.get(Key.of_object(body))
            wanted = DESIRED_DIGEST.read(annotations_of(stored))
        found.append((data_volume_of(body), cron_facts(body, wanted, local=zone)))
    return found


def cron_lines(cron: CronFacts) -> Iterator[tuple[str, str]]:
    """Yield a label and a text for each fact about a DataImportCron."""
    yield "golden image", f"{cron.key.namespace}/{cron.key.name}"
    yield "data source", cron.data_source
    yield "schedule", cron.schedule or "none: it is never polled"
    if cron.next_polls:
        yield "next polls", ", ".join(cron.next_polls)
    yield from cron.settings
    result = cron.result
    if result is None or result.digest is None:
        return
    yield "poll finds", f"{result.digest} ({result.identity})" if result.identity else result.digest
    if result.resolved:
        yield "pinned as", result.resolved
    if result.architectures:
        yield "architectures", ", ".join(result.architectures)
    if result.size is not None:
        yield "download", words_of_size(result.size)
    yield "version", cron.news
