"""Preview of a golden image for ``cdi explain``: what a poll finds now, and what the import of that would take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from typing import Any, Final

from cdi.api.errors import CdiError, by_code
from cdi.api.golden import parse_golden_settings
from cdi.api.job import Job
from cdi.api.kinds import DATA_VOLUMES
from cdi.api.names import cron_import, joined
from cdi.api.policy import PREFIX
from cdi.api.poll import PollJob, PollResult
from cdi.api.schedule import Schedule
from cdi.api.timestamps import timestamp
from cdi.client.with_progress import OnProgress, run_with_progress
from cdi.store.base import Key
from cdi.transfer.control import TransferControl
from cdi.transfer.poll import poll

NEXT_POLLS: Final = 3
_SUFFIX: Final = "explained"
"""End of the name of the DataVolume that stands for the next version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CronFacts:
    """A DataImportCron, and the answer of its source."""

    key: Key
    data_source: str
    schedule: str
    next_polls: tuple[str, ...]
    """RFC 3339; empty if it is never polled."""
    wanted: str | None = None
    """Digest that the last poll found, if the DataImportCron exists."""
    settings: tuple[tuple[str, str], ...] = ()
    """What happens to a version before it is offered, as labels and values."""
    result: PollResult | None = None
    """None if the source was not asked, because an earlier error prevents it."""

    @property
    def version(self) -> str | None:
        """Name of the version that the source offers now."""
        digest = self.result.digest if self.result is not None else None
        return None if digest is None else cron_import(self.data_source, digest)

    @property
    def news(self) -> str:
        """Whether that version is new, as a sentence; empty if the source was not asked successfully."""
        if self.version is None:
            return ""
        if self.wanted is None:
            return f"{self.version} would be imported"
        if self.result is not None and self.result.digest == self.wanted:
            return f"{self.version} is known, nothing would be imported"
        return f"{self.version} is new and would be imported"


def cron_facts(
    cron: Mapping[str, Any], wanted: str | None, *, local: tzinfo = UTC, now: float | None = None
) -> CronFacts:
    """Return the facts in a valid manifest.

    Args:
        cron: The DataImportCron with its namespace.
        wanted: The digest that the last poll found, None if there was none.
        local: Time zone of schedules that name none.
        now: Seconds since the epoch; None for the current time.

    Raises:
        InvalidManifest: A setting is invalid.
    """
    metadata, spec = cron["metadata"], cron["spec"]
    settings = parse_golden_settings(metadata.get("annotations"))
    rows: list[tuple[str, str]] = []
    if settings.proof == "boot":
        rows.append(("boot proof", "a version is offered only after a virtual machine has booted from it"))
    rows += [("channel", name) for name, _ in settings.channels]
    rows += [("architecture", name) for name in settings.architectures]
    if settings.pin is not None:
        rows.append(("pinned", settings.pin))
    if settings.hold:
        rows.append(("on hold", "nothing is imported"))
    moment = time.time() if now is None else now
    polls: list[str] = []
    if spec["schedule"]:
        schedule = Schedule.parse(spec["schedule"])
        while len(polls) < NEXT_POLLS and (following := schedule.next_after(moment, local)) is not None:
            polls.append(timestamp(datetime.fromtimestamp(following, UTC)))
            moment = following
    return CronFacts(
        key=Key.of("dataimportcron", metadata.get("namespace"), metadata["name"]),
        data_source=spec["managedDataSource"],
        schedule=spec["schedule"],
        next_polls=tuple(polls),
        wanted=wanted,
        settings=tuple(rows),
    )


def data_volume_of(cron: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a DataVolume that imports what a DataImportCron would import next."""
    metadata, spec = cron["metadata"], cron["spec"]
    annotations = {name: text for name, text in (metadata.get("annotations") or {}).items() if name.startswith(PREFIX)}
    return {
        "apiVersion": DATA_VOLUMES.api_version,
        "kind": "DataVolume",
        "metadata": {
            "name": joined(spec["managedDataSource"], _SUFFIX),
            **({"namespace": metadata["namespace"]} if metadata.get("namespace") else {}),
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": dict(spec["template"]["spec"]),
    }


def ask_source(facts: CronFacts, job: Job, on_progress: OnProgress | None) -> tuple[CronFacts, CdiError | None]:
    """Poll the source of a job whose inputs exist; return the facts with the answer, and the error of the poll."""
    control = TransferControl(job)
    asked = PollJob(id=job.id, source=job.source, policy=job.policy)
    result = run_with_progress(lambda: poll(asked, control), control, on_progress)
    failure = result.failure
    error = None if failure is None else by_code(failure.code)(failure.message, remedy="")
    return replace(facts, result=result), error
