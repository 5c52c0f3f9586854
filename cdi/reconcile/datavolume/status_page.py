"""The page of the documentation about phases, conditions, events and annotations of DataVolumes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cdi.reconcile.datavolume.status import ConditionValue
from cdi.reconcile.datavolume.status_cases import CASES, NOTES, Case
from cdi.reconcile.datavolume.status_table import EVENTS, FAILURES, PRIME_EVENT, Course

_INTRODUCTION: Final = """
# Conditions and events

What the status of a DataVolume says in every phase. Reasons and messages are those of KubeVirt's CDI. A word in braces
stands for what varies: `{name}` is the name of the DataVolume, which is also its PVC's, `{source}` the clone's source
as `namespace/name`, `{source_name}` its name, `{kind}` is `pvc` or `snapshot`, `{populator}` the name in the
dataSourceRef, `{event}` the message of an event, `{cause}` and `{note}` a sentence, `{reason}` one of Kubernetes'
reasons or ours, `{failure}` one of `Error`, `ImagePullFailed` and `ChecksumError`.

The condition Ready has neither reason nor message in most phases. The code of an error ([errors](errors.md)), the
remedy, and what the content was verified by are in `status.detail`, which KubeVirt's CDI does not have.
"""
_COURSES: Final = {
    Course.IMPORT: "HTTP(S), S3, GCS, registry and blank sources, and PVCs that name a VolumeImportSource.",
    Course.UPLOAD: "Uploads, and PVCs that name a VolumeUploadSource.",
    Course.CLONE: "PVCs and VolumeSnapshots as sources, and PVCs that name a VolumeCloneSource.",
    Course.EXTERNAL: "A dataSource or dataSourceRef that is not one of CDI's.",
    Course.EXISTING: "PVCs that are adopted, populated before, or bound to a volume that has its content.",
}


def status_page() -> str:
    """Return the page as Markdown."""
    return "\n".join([_INTRODUCTION.strip(), *_cases(), *_events(), *_notes()]) + "\n"


def _cases() -> Iterator[str]:
    for course in Course:
        yield f"\n## {course}\n\n{_COURSES[course]}\n"
        yield "| phase | when | Bound | Running | Ready |"
        yield "|---|---|---|---|---|"
        for case in CASES:
            if course in case.courses:
                yield _row(case)


def _row(case: Case) -> str:
    bound = "<br>".join(_cell(one) for one in case.bound)
    return f"| {case.phase} | {case.when} | {bound} | {_cell(case.running)} | {_cell(case.ready)} |"


def _cell(condition: ConditionValue) -> str:
    reason = f" `{condition.reason}`" if condition.reason else ""
    message = f": {condition.message}" if condition.message else ""
    return f"{condition.status}{reason}{message}"


def _events() -> Iterator[str]:
    yield "\n## Events\n"
    yield (
        "A DataVolume that enters a phase has an event. After a colon follows what it was verified by, or code and "
        "cause.\n"
    )
    yield "| course | phase | type | reason | message |"
    yield "|---|---|---|---|---|"
    for (course, phase), event in EVENTS.items():
        yield f"| {course} | {phase} | {event.type} | `{event.reason}` | {event.message} |"
    yield "\nA final failure with a reason of its own:\n"
    yield "| reason | message |"
    yield "|---|---|"
    for reason, message in FAILURES.items():
        yield f"| `{reason}` | {message} |"
    yield (
        "\nBeside these, each change of Bound has an event (Normal) with its reason and message, and each failed "
        "attempt one (Warning) with those of Running; the PVC has `ErrImportFailed`, `UploadFailed` or "
        f"`CloneFailed` for it. A warning about a prime PVC is repeated on its target and the "
        f"DataVolume as `{PRIME_EVENT}`."
    )


def _notes() -> Iterator[str]:
    yield "\n## Annotations\n"
    yield (
        "The annotations by which other programs follow a volume; [the others](state.md) are for users and for `cdi` "
        "itself.\n"
    )
    yield "| annotation | on | when | content |"
    yield "|---|---|---|---|"
    for note in NOTES:
        yield f"| `{note.key}` | {', '.join(note.on)} | {note.when} | {note.content} |"
