"""What the pods of the controller do: results made up from the jobs that the controller wrote."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field

from cdi.api.annotations import JOB
from cdi.api.copy import TICKET_PREFIX, Ticket
from cdi.api.errors import BootFailed, by_code
from cdi.api.job import BlankSourceSpec, Failure, Job, Outcome, StreamSourceSpec
from cdi.api.kinds import CLAIMS, PODS, SERVICES, Object
from cdi.api.names import (
    COMPONENT_CLONER,
    COMPONENT_IMPORTER,
    COMPONENT_PROOF,
    COMPONENT_UPLOAD_SERVER,
    LABEL_COMPONENT,
    LABEL_DATA_IMPORT_CRON_POLLER,
)
from cdi.api.poll import PollJob, PollResult
from cdi.api.proof import ProofJob, ProofResult
from cdi.reconcile.clone.plan_annotation import ANN_SOURCE_UID
from cdi.reconcile.pods.roles import SIZE_DETECTION
from cdi.worker.termination import termination_message
from tests.simulation.cluster import Cluster, claims_of

OK = "ok"
KILLED = "killed"
"""The container ends without a termination message."""
BOOT_FAILURE = "no boot"
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a container ends."""

    code: int
    message: str = ""
    content: str | None = None
    """What it has written into its PVC."""
    reason: str = ""


@dataclass(slots=True)
class Script:
    """What the outside world does: servers, images, registries, users who upload."""

    results: dict[str, list[str]] = field(default_factory=dict)
    """Results of the attempts with a URL: `OK`, `KILLED` or the code of an error; after the last one, `OK`."""
    digests: dict[str, str] = field(default_factory=dict)
    """Current digest of a registry's URL."""
    proofs: dict[str, list[str]] = field(default_factory=dict)
    """Results of boot proofs, by content of the disk."""

    def next(self, results: dict[str, list[str]], name: str) -> str:
        left = results.get(name)
        return left.pop(0) if left else OK


class Workers:
    """Results of the containers that end."""

    def __init__(self, cluster: Cluster, script: Script) -> None:
        self._cluster = cluster
        self.script = script
        self._repeated: dict[str, End] = {}
        """Ends of pods that only repeat them, by UID."""

    def writes(self, pod: Object) -> bool:
        """Return whether a pod of ours writes to the PVC that it has."""
        return component(pod) in (COMPONENT_IMPORTER, COMPONENT_UPLOAD_SERVER)

    def may_end(self, pod: Object) -> bool:
        """Return whether what a running pod waits for has come."""
        if component(pod) == COMPONENT_CLONER:
            return not self._targets_left(pod)
        if self.writes(pod):
            job = pod["metadata"]["annotations"][JOB.key]
            if is_copy(job):
                return self._sender(pod, Job.from_json(job)) is not None
            return component(pod) == COMPONENT_IMPORTER or self._upload_comes(pod)
        return True

    def end(self, pod: Object, run: int) -> End:
        """Return how the container of a pod ends, for the run with this number from 1."""
        known = self._repeated.get(pod["metadata"]["uid"])
        if known is not None:
            return known
        if component(pod) == SIZE_DETECTION.component:
            return self._measured(pod)
        if component(pod) == COMPONENT_PROOF:
            return self._proved(pod)
        if self.writes(pod):
            return self._filled(pod, run)
        if LABEL_DATA_IMPORT_CRON_POLLER in (pod["metadata"].get("labels") or {}):
            return self._polled(pod)
        return End(code=0)

    # --- results --------------------------------------------------------------------------------------------------

    def _filled(self, pod: Object, run: int) -> End:
        text = pod["metadata"]["annotations"][JOB.key]
        if is_copy(text):
            copy = Job.from_json(text)
            sender = self._sender(pod, copy)
            content = self._read_content(sender) if sender is not None else ""
            identity, result, kind = copy.id, OK, ""
        else:
            job = Job.from_json(text)
            content = _content_of(job, pod)
            identity, kind = job.id, job.source.kind
            result = self.script.next(self.script.results, content)
            while result == "ScratchNeeded" and job.scratch:
                result = self.script.next(self.script.results, content)
        if result == KILLED:
            return End(code=137)
        failure = None if result == OK else failure_of(result)
        outcome = Outcome(id=identity, failure=failure, digest=digest(content) if failure is None else None)
        end = End(
            code=0 if failure is None else failure.exit_status,
            message=termination_message(outcome, source=kind, run=run),
            content=content if failure is None else None,
        )
        if failure is not None and failure.needs_new_pod:
            self._repeated[pod["metadata"]["uid"]] = end
        return end

    def _measured(self, pod: Object) -> End:
        identity = pod["metadata"]["annotations"][ANN_SOURCE_UID]
        outcome = Outcome(id=identity, disk_size=900 * MIB)
        return End(code=0, message=termination_message(outcome))

    def _proved(self, pod: Object) -> End:
        job = ProofJob.from_json(pod["metadata"]["annotations"][JOB.key])
        claim = self._cluster.claim(pod["metadata"]["namespace"], claims_of(pod)[0])
        disk = self._cluster.disk_of(claim)
        result = self.script.next(self.script.proofs, disk.content if disk is not None else "")
        if result == KILLED:
            return End(code=137)
        booted = result == OK
        proof = ProofResult(
            id=job.id, booted=booted, message="a login prompt" if booted else "a panic", accelerator="tcg", seconds=60
        )
        return End(code=0 if booted else BootFailed.exit_status, message=proof.to_json())

    def _polled(self, pod: Object) -> End:
        job = PollJob.from_json(pod["metadata"]["annotations"][JOB.key])
        url = getattr(job.source, "url", "")
        found = next((text for name, text in self.script.digests.items() if name in url), None)
        if found is None or self.script.next(self.script.results, f"poll {url}") != OK:
            return End(code=3, message=PollResult(id=job.id, failure=failure_of("SourceUnreachable")).to_json())
        return End(code=0, message=PollResult(id=job.id, digest=found, identity="manifest").to_json())

    # --- copies ---------------------------------------------------------------------------------------------------

    def _sender(self, pod: Object, job: Job) -> Object | None:
        """Return a running source pod that has a ticket for a target pod."""
        address = (pod["status"].get("podIP") or "") + ":8444"
        for one in self._cluster.server.all(PODS):
            if component(one) == COMPONENT_CLONER and one["status"].get("phase") == "Running":
                for ticket in tickets_of(one):
                    if (ticket.id, ticket.attempt, ticket.address) == (job.id, pod["metadata"]["uid"], address):
                        return one
        return None

    def _targets_left(self, pod: Object) -> bool:
        """Return whether a source pod has unfinished targets, for which it lingers."""
        targets = {ticket.attempt for ticket in tickets_of(pod)}
        running = {one["metadata"]["uid"]: one for one in self._cluster.server.all(PODS)}
        return any(uid in running and running[uid]["status"].get("phase") != "Succeeded" for uid in targets)

    def _read_content(self, sender: Object) -> str:
        claim = self._cluster.claim(sender["metadata"]["namespace"], claims_of(sender)[0])
        disk = self._cluster.disk_of(claim)
        return disk.content if disk is not None and disk.complete else "garbage"

    def _upload_comes(self, pod: Object) -> bool:
        """Return whether a client uploads: it waits for the ready annotation of the target, and finds the Service."""
        namespace, owner = pod["metadata"]["namespace"], pod["metadata"]["annotations"].get("cdi.kubevirt.io/ownerUID")
        target = next((one for one in self._cluster.server.all(CLAIMS) if one["metadata"]["uid"] == owner), None)
        annotations = (target or {"metadata": {}})["metadata"].get("annotations") or {}
        ready = annotations.get("cdi.kubevirt.io/storage.pod.ready") == "true"
        return ready and self._cluster.server.find(SERVICES, namespace, pod["metadata"]["name"]) is not None


def component(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(LABEL_COMPONENT) or "")


@functools.cache
def is_copy(job: str) -> bool:
    """Return whether a job is that of a clone's target."""
    return json.loads(job).get("source", {}).get("kind") == "peer"


def tickets_of(pod: Object) -> list[Ticket]:
    annotations = pod["metadata"].get("annotations") or {}
    return [Ticket.from_json(text) for name, text in annotations.items() if name.startswith(TICKET_PREFIX)]


def failure_of(code: str) -> Failure:
    """Return a failure with the retry rule of its error."""
    error = by_code(code)
    assert error.__name__ == code, f"there is no error {code}"
    return Failure.from_error(error("it failed"))


def digest(content: str) -> str:
    return f"sha256:{content.encode().hex()[:64].ljust(64, '0')}"


def _content_of(job: Job, pod: Object) -> str:
    """Return what a job writes if it succeeds."""
    if isinstance(job.source, StreamSourceSpec):
        return f"upload {pod['metadata']['namespace']}"
    if isinstance(job.source, BlankSourceSpec):
        return "blank"
    return str(getattr(job.source, "url", ""))
