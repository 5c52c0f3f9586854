"""Invariants of the attempts to fill a volume: each is counted once, and their limits hold."""

from __future__ import annotations

from collections.abc import Iterator

from cdi.api.annotations import ATTEMPT
from cdi.api.errors import Retry
from cdi.api.kinds import CLAIMS, PODS, Object, Resource
from cdi.api.names import COMPONENT_IMPORTER, COMPONENT_UPLOAD_SERVER
from cdi.reconcile.datavolume.attempts import ANNOTATION, AttemptHistory
from cdi.reconcile.datavolume.retrying import SCRATCH_NEEDED
from cdi.reconcile.settings import CLUSTER_RETRIES
from tests.simulation.api_server import Request
from tests.simulation.cluster import TERMINAL, Cluster
from tests.simulation.virtual_time import START
from tests.simulation.workers import component

SHORTEST = 0.75
"""The jitter shortens a delay to this part of it, at most."""


class AttemptInvariants:
    """The invariants of attempts, each a method whose docstring is its sentence."""

    def __init__(self, cluster: Cluster, *, steady_clock: bool) -> None:
        """Start without attempts; delays are not checked unless the clock of the controller is that of the cluster."""
        self._cluster = cluster
        self._steady_clock = steady_clock
        self._ended: dict[str, dict[str, int]] = {}
        """Numbers of the attempts whose pods have ended and still exist, by UID of the PVC and name of the pod."""

    def attempts_are_counted_once(
        self, _: Request, resource: Resource, old: Object | None, new: Object | None
    ) -> Iterator[str]:
        """The end of each attempt is recorded once, and before the next pod is created."""
        if resource == CLAIMS and old is not None and new is not None:
            yield from _miscounted(_history(old), _history(new), new)
        if resource != PODS or not _is_worker(new or old):
            return
        if new is None or "deletionTimestamp" in new["metadata"]:
            # An end that was not seen before the pod was deleted cannot be counted.
            assert old is not None
            self._ended.get(_owner(old), {}).pop(old["metadata"]["name"], None)
            return
        owner, name, number = _owner(new), new["metadata"]["name"], _number(new)
        if old is None:
            claim = self._claim(owner)
            if claim is None:
                return
            recorded = _history(claim).attempt
            if number <= recorded:
                yield f"pod {name} was created for attempt {number}, which was recorded before"
            for other, ended in self._ended.get(owner, {}).items():
                if ended > recorded:
                    yield f"pod {name} was created while the end of attempt {ended} in pod {other} is not recorded"
        elif new["status"].get("phase") in TERMINAL:
            self._ended.setdefault(owner, {})[name] = number

    def retry_limits_hold(
        self, _: Request, resource: Resource, old: Object | None, new: Object | None
    ) -> Iterator[str]:
        """No pod is created after a final failure, after the last permitted attempt, or before the delay has passed."""
        if resource != PODS or old is not None or new is None or not _is_worker(new):
            return
        claim = self._claim(_owner(new))
        if claim is None:
            return
        history, name = _history(claim), new["metadata"]["name"]
        failure = history.failure
        if failure is None or failure.code == SCRATCH_NEEDED:
            return
        if failure.retry is Retry.NEVER:
            yield f"pod {name} was created after the final failure {failure.code}"
        if history.exhausted(CLUSTER_RETRIES) is not None:
            yield f"pod {name} was created after {history.failures} failures"
        if failure.retry is Retry.BACKOFF and self._steady_clock:
            delay = min(CLUSTER_RETRIES.base * 2 ** (history.failures - 1), CLUSTER_RETRIES.longest) * SHORTEST
            passed = START + self._cluster.now() - history.ended
            if passed < delay:  # the kubelet's timestamps are rounded down, which makes it longer
                yield f"pod {name} was created {passed:.1f} s after failure {history.failures}, not {delay:.1f} s"

    def _claim(self, uid: str) -> Object | None:
        return next((one for one in self._cluster.server.all(CLAIMS) if one["metadata"]["uid"] == uid), None)


def _miscounted(before: AttemptHistory, after: AttemptHistory, claim: Object) -> Iterator[str]:
    name = claim["metadata"]["name"]
    if after.attempt < before.attempt:
        yield f"the attempts of PVC {name} went from {before.attempt} back to {after.attempt}"
    # An attempt that the kubelet restarted in place may end before the end of the one before it could be recorded.
    if after.failures > before.failures + max(0, after.attempt - before.attempt):
        yield f"attempt {after.attempt} of PVC {name} was counted as {after.failures - before.failures} failures"


def _history(claim: Object) -> AttemptHistory:
    return AttemptHistory.read((claim["metadata"].get("annotations") or {}).get(ANNOTATION))


def _is_worker(pod: Object | None) -> bool:
    return pod is not None and component(pod) in (COMPONENT_IMPORTER, COMPONENT_UPLOAD_SERVER)


def _owner(pod: Object) -> str:
    return str((pod["metadata"].get("annotations") or {}).get("cdi.kubevirt.io/ownerUID") or "")


def _number(pod: Object) -> int:
    return ATTEMPT.read(pod["metadata"].get("annotations") or {}) or 0
