"""The conditions of a DataVolume in every phase and situation, and the annotations that tell the same.

Composed of the texts that the reconcilers use (`cdi.reconcile.datavolume.status_table`). ``docs/reference/status.md``
shows them, and the tests check that no DataVolume has conditions that are not among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cdi.api import names
from cdi.api.phases import EventReason, Phase, Reason
from cdi.reconcile.datavolume.status import ConditionValue, false, true
from cdi.reconcile.datavolume.status_table import (
    BOUND,
    COMPLETE,
    LOST,
    NOT_FOUND,
    OPERATIONS,
    PENDING,
    PENDING_EVENT,
    RUNS,
    WITHOUT_SOURCE,
    Course,
)

ALL: Final = tuple(Course)
_FILLED: Final = (Course.IMPORT, Course.UPLOAD, Course.CLONE)
_COPYING: Final = (
    (Course.IMPORT, Phase.IMPORT_IN_PROGRESS),
    (Course.UPLOAD, Phase.UPLOAD_READY),
    (Course.CLONE, Phase.CLONE_IN_PROGRESS),
)
_SCHEDULED: Final = (
    (Course.IMPORT, Phase.IMPORT_SCHEDULED),
    (Course.UPLOAD, Phase.UPLOAD_SCHEDULED),
    (Course.CLONE, Phase.CLONE_SCHEDULED),
)
_BY_STORAGE: Final = (
    Phase.SNAPSHOT_FOR_SMART_CLONE_IN_PROGRESS,
    Phase.CLONE_FROM_SNAPSHOT_SOURCE_IN_PROGRESS,
    Phase.CSI_CLONE_IN_PROGRESS,
    Phase.EXPANSION_IN_PROGRESS,
    Phase.PREP_CLAIM_IN_PROGRESS,
)
_BINDING: Final = (
    (Course.IMPORT, Phase.IMPORT_IN_PROGRESS),
    (Course.UPLOAD, Phase.UPLOAD_READY),
    (Course.CLONE, Phase.REBIND_IN_PROGRESS),
    (Course.CLONE, Phase.NAMESPACE_TRANSFER_IN_PROGRESS),
)
_ANY: Final = false("{reason}", "{cause}")
"""Not running, with a reason of Kubernetes or of ours, and the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The conditions of one phase in one situation; reasons and messages are templates."""

    courses: tuple[Course, ...]
    phase: Phase
    when: str
    bound: tuple[ConditionValue, ...]
    """More than one where it depends on whether a populator is used."""
    running: ConditionValue
    ready: ConditionValue
    claim: bool = True
    """Whether the PVC exists."""


def _unavailable(courses: tuple[Course, ...], when: str, why: ConditionValue, phase: Phase = Phase.PENDING) -> Case:
    return Case(courses=courses, phase=phase, when=when, bound=(why,), running=false(), ready=why, claim=False)


_INVALID: Final = false(Reason.ERR_CLAIM_NOT_VALID, "{cause}")
CASES: Final[tuple[Case, ...]] = (
    Case(
        courses=ALL, phase=Phase.PENDING, when="it waits for something else before its PVC is created",
        bound=(NOT_FOUND,), running=false(), ready=false(), claim=False,
    ),
    _unavailable((Course.CLONE,), "the source does not exist",
                 false(EventReason.CLONE_WITHOUT_SOURCE, WITHOUT_SOURCE)),
    _unavailable((Course.CLONE,), "pods use the source, or it is not populated",
                 false(EventReason.CLONE_SOURCE_IN_USE, "{cause}")),
    _unavailable(ALL, "a quota does not allow the PVC", false(Reason.ERR_EXCEEDED_QUOTA, "{cause}")),
    _unavailable(ALL, "the PVC is incomplete or invalid", _INVALID),
    _unavailable(ALL, "the API server rejects the PVC for good", _INVALID, Phase.FAILED),
    Case(
        courses=ALL, phase=Phase.PENDING, when="the PVC is unbound",
        bound=(PENDING,), running=false(), ready=false(),
    ),
    Case(
        courses=ALL, phase=Phase.PENDING, when="the provisioner reports a problem",
        bound=(PENDING_EVENT,), running=false(), ready=false(),
    ),
    Case(
        courses=_FILLED, phase=Phase.PENDING_POPULATION, when="with a populator: no pod uses the PVC yet",
        bound=(PENDING,), running=false(), ready=false(),
    ),
    Case(
        courses=ALL, phase=Phase.WAIT_FOR_FIRST_CONSUMER, when="without a populator: no pod uses the PVC yet",
        bound=(PENDING,), running=false(), ready=false(),
    ),
    Case(
        courses=_FILLED, phase=Phase.PVC_BOUND, when="a Secret or ConfigMap is missing, or pods use the bound PVC",
        bound=(BOUND,), running=_ANY, ready=false(),
    ),
    *(
        Case(
            courses=(course,), phase=phase, when="the pod is yet to be created",
            bound=(BOUND, PENDING), running=false(), ready=false(),
        )
        for course, phase in _SCHEDULED
    ),
    *(
        Case(
            courses=(course,), phase=phase, when="the pod cannot start yet, or a retry waits for its delay",
            bound=(BOUND, PENDING), running=_ANY, ready=false(),
        )
        for course, phase in _SCHEDULED
    ),
    Case(
        courses=(Course.UPLOAD,), phase=Phase.UPLOAD_SCHEDULED, when="the pod runs, and its server is not ready yet",
        bound=(BOUND, PENDING), running=true(RUNS, "{note}"), ready=false(Reason.TRANSFER_RUNNING),
    ),
    Case(
        courses=(Course.IMPORT,), phase=Phase.IMPORT_SCHEDULED, when="scratch space is being created",
        bound=(false(Reason.CREATING_SCRATCH_SPACE, "{cause}"),), running=_ANY, ready=false(),
    ),
    *(
        Case(
            courses=(Course.CLONE,), phase=phase, when="the storage clones",
            bound=(PENDING, BOUND), running=false(Reason.PENDING, "{cause}"), ready=false(),
        )
        for phase in _BY_STORAGE
    ),
    *(
        Case(
            courses=(course,), phase=phase, when="the pod runs",
            bound=(BOUND, PENDING), running=true(RUNS, "{note}"), ready=false(Reason.TRANSFER_RUNNING),
        )
        for course, phase in _COPYING
    ),
    *(
        Case(
            courses=(course,), phase=phase, when="an attempt has failed, and is repeated",
            bound=(BOUND, PENDING), running=false("{failure}", "{cause}"), ready=false(),
        )
        for course, phase in _COPYING
    ),
    *(
        Case(
            courses=(course,), phase=phase, when="the content is complete, and the PVC is bound to its volume",
            bound=(PENDING,), running=COMPLETE[OPERATIONS[course]], ready=false(),
        )
        for course, phase in _BINDING
    ),
    *(
        Case(
            courses=(course,), phase=Phase.SUCCEEDED, when="the content is complete",
            bound=(BOUND,), running=COMPLETE[operation], ready=true(),
        )
        for course, operation in OPERATIONS.items()
    ),
    Case(
        courses=(Course.EXTERNAL,), phase=Phase.SUCCEEDED, when="the PVC is bound",
        bound=(BOUND,), running=false(), ready=true(),
    ),
    Case(
        courses=(Course.EXISTING,), phase=Phase.SUCCEEDED, when="at once",
        bound=(BOUND, PENDING), running=false(), ready=true(),
    ),
    Case(
        courses=(Course.CLONE,), phase=Phase.CLONE_SCHEDULED, when="the PVC is too small, or its strategy unknown",
        bound=(PENDING, BOUND), running=false(Reason.ERROR, "{cause}"), ready=false(),
    ),
    Case(
        courses=ALL, phase=Phase.FAILED, when="only another source or another manifest can help, and there is a PVC",
        bound=(BOUND, PENDING), running=false("{failure}", "{cause}"), ready=false(),
    ),
    Case(
        courses=ALL, phase=Phase.FAILED, when="the same, without a PVC",
        bound=(NOT_FOUND,), running=false(Reason.ERROR, "{cause}"), ready=false(), claim=False,
    ),
    Case(
        courses=ALL, phase=Phase.FAILED, when="a PVC of that name exists and may not be adopted",
        bound=(false("AlreadyExists", "{cause}"),), running=false(Reason.ERROR, "{cause}"), ready=false(), claim=False,
    ),
    Case(
        courses=ALL, phase=Phase.FAILED, when="the volume is lost",
        bound=(LOST,), running=false(Reason.ERROR, "{cause}"), ready=false(),
    ),
)  # fmt: skip
"""The conditions of every phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An annotation that programs read to follow a volume."""

    key: str
    on: tuple[str, ...]
    """The kinds of objects: DataVolume, PVC, prime PVC."""
    when: str
    content: str


def _note(key: str, content: str, when: str = "from the first attempt on", on: tuple[str, ...] = ("PVC",)) -> Note:
    return Note(key=key, on=on, when=when, content=content)


_BOTH: Final = ("PVC", "prime PVC")
NOTES: Final[tuple[Note, ...]] = (
    _note(names.ANN_POD_PHASE, "`Pending`, `Running`, `Succeeded` or `Failed`", "as soon as the PVC exists", _BOTH),
    _note(names.ANN_POD_READY, "whether the pod is ready; uploads are accepted while it is `true`", on=_BOTH),
    _note(names.ANN_POD_RESTARTS, "failed attempts so far, as in `status.restartCount`", on=_BOTH),
    _note(names.ANN_POD_SCHEDULABLE, "whether the scheduler has found a node", "once the pod exists", _BOTH),
    _note(names.ANN_IMPORT_POD, "name of the importer or target pod", "once the pod exists", _BOTH),
    _note(names.ANN_UPLOAD_POD, "name of the upload server's pod", "once the pod exists", _BOTH),
    _note(names.ANN_RUNNING_CONDITION, "status of Running", on=_BOTH),
    _note(names.ANN_RUNNING_CONDITION_REASON, "its reason", on=_BOTH),
    _note(names.ANN_RUNNING_CONDITION_MESSAGE, "its message", on=_BOTH),
    _note(names.ANN_BOUND_CONDITION, "status of Bound", "always"),
    _note(names.ANN_BOUND_CONDITION_REASON, "its reason", "always"),
    _note(names.ANN_BOUND_CONDITION_MESSAGE, "its message, or the provisioner's message alone", "always"),
    _note(names.ANN_USE_POPULATOR, "whether a prime PVC is filled in its place", "always"),
    _note(names.ANN_PVC_PRIME, "name of the prime PVC", "once the prime PVC exists"),
    _note(
        names.ANN_POPULATOR_PROGRESS, "per cent, such as `42.17%`, or `N/A`", "while a prime PVC is filled, and after"
    ),
    _note(names.ANN_REQUIRES_SCRATCH, "`true`", "once an image needs scratch space"),
    _note(names.ANN_IMPORT_FATAL_ERROR, "`true`", "after a checksum mismatch"),
    _note(names.ANN_EXTERNAL_POPULATION, "`true`", "if the populator is not one of CDI's"),
    _note(names.ANN_POPULATED_FOR, "name of the DataVolume", "once it is adopted"),
    _note(names.ANN_CLONE_TYPE, "`copy`, `snapshot` or `csi-clone`", "once a clone is planned"),
    _note(names.ANN_CLONE_PHASE, "phase of the clone", "while it is cloned, and after"),
    _note(names.ANN_CLONE_FALLBACK_REASON, "why the preferred strategy is not used", "once a clone is planned"),
    _note(names.ANN_CLONE_ERROR, "cause and remedy of the last failed attempt", "until the next attempt"),
    _note(names.ANN_CLONE_OF, "`true`", "after a clone"),
    _note(names.ANN_SOURCE_CLONE_POD, "name of the pod that reads the source", "while a clone is copied"),
    _note(names.ANN_SOURCE_RUNNING_CONDITION, "whether that pod runs", "while a clone is copied"),
    _note(names.ANN_SOURCE_RUNNING_CONDITION_REASON, "its reason", "while a clone is copied"),
    _note(names.ANN_SOURCE_RUNNING_CONDITION_MESSAGE, "its message", "while a clone is copied"),
    _note(names.ANN_PREALLOCATION_APPLIED, "`true`", "after success, if the disk was preallocated"),
)
"""The annotations by which programs follow a volume."""
