"""Nodes of the simulated cluster: scheduler, kubelets, the Job controller and the garbage collector."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cdi.api.kinds import CLAIMS, JOBS, NODES, PODS, SECRETS, STORAGE_CLASSES, Object, Resource
from tests.simulation.cluster import TERMINAL, Cluster, Step, claims_of
from tests.simulation.storage import SELECTED_NODE
from tests.simulation.workers import COMPONENT_UPLOAD_SERVER, End, Workers, component


class Kubelet:
    """Scheduler and kubelets."""

    def __init__(self, cluster: Cluster, workers: Workers) -> None:
        self._cluster = cluster
        self._server = cluster.server
        self._workers = workers
        self._addresses = 0

    def steps(self) -> Iterator[Step]:
        for pod in self._server.all(PODS):
            node = pod["spec"].get("nodeName")
            if node in self._cluster.lost_nodes:
                continue
            if "deletionTimestamp" in pod["metadata"]:
                if self._cluster.due(f"stop {pod['metadata']['uid']}", 0.05, 5.0):
                    yield Step("pod stops", partial(self.remove, pod))
            elif not node:
                if self._may_schedule(pod):
                    yield Step("schedule pod", partial(self._schedule, pod))
            elif pod["status"].get("phase") == "Pending":
                if self._may_start(pod):
                    yield Step("start pod", partial(self._start, pod))
            elif pod["status"].get("phase") == "Running":
                yield from self._running_steps(pod)

    # --- scheduling -----------------------------------------------------------------------------------------------

    def _may_schedule(self, pod: Object) -> bool:
        if not self._ready_nodes():
            return False
        for name in claims_of(pod):
            claim = self._cluster.claim(pod["metadata"]["namespace"], name)
            if claim is None or "deletionTimestamp" in claim["metadata"]:
                return False
            storage_class = self._server.find(STORAGE_CLASSES, "", claim["spec"].get("storageClassName") or "")
            waits = storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"
            if claim["status"].get("phase") != "Bound" and not waits:
                return False
        return True

    def _schedule(self, pod: Object) -> None:
        nodes = self._ready_nodes()
        unbound = [
            claim
            for name in claims_of(pod)
            if (claim := self._cluster.claim(pod["metadata"]["namespace"], name)) is not None
            and claim["status"].get("phase") != "Bound"
        ]
        if unbound:
            # The scheduler assigns the node once the volumes are bound.
            for claim in unbound:
                if SELECTED_NODE not in (claim["metadata"].get("annotations") or {}):
                    self._cluster.change(CLAIMS, claim, metadata={"annotations": {SELECTED_NODE: nodes[0]}})
            return
        node = self._cluster.chance.choice(nodes)
        conditions = [{"type": "PodScheduled", "status": "True"}]
        self._cluster.change(PODS, pod, spec={"nodeName": node}, status={"conditions": conditions})

    def _ready_nodes(self) -> list[str]:
        names = [node["metadata"]["name"] for node in self._server.all(NODES)]
        return [name for name in names if name not in self._cluster.lost_nodes]

    # --- life -----------------------------------------------------------------------------------------------------

    def _may_start(self, pod: Object) -> bool:
        namespace = pod["metadata"]["namespace"]
        claims = (self._cluster.claim(namespace, name) for name in claims_of(pod))
        if any(self._cluster.disk_of(claim) is None for claim in claims):
            return False
        secrets = [one["secret"]["secretName"] for one in pod["spec"].get("volumes") or () if "secret" in one]
        if any(self._server.find(SECRETS, namespace, name) is None for name in secrets):
            return False
        return self._cluster.due(f"pull {pod['metadata']['uid']}", 0.05, 2.0)

    def _start(self, pod: Object) -> None:
        self._addresses += 1
        number = self._addresses
        status = {
            "phase": "Running",
            "podIP": f"10.0.{number // 256}.{number % 256}",
            "containerStatuses": [self._container(pod, {"running": {"startedAt": self._cluster.stamp()}})],
        }
        self._begin_writing(pod)
        self._cluster.change(PODS, pod, status=status)

    def _container(
        self, pod: Object, state: Object, *, restarts: int = 0, ready: bool = False, **more: Object
    ) -> Object:
        name = pod["spec"]["containers"][0]["name"]
        return {"name": name, "state": state, "restartCount": restarts, "ready": ready, **more}

    def _running_steps(self, pod: Object) -> Iterator[Step]:
        uid = pod["metadata"]["uid"]
        container = pod["status"]["containerStatuses"][0]
        state, run = container["state"], container["restartCount"] + 1
        if "terminated" in state:
            waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}}
            changed = self._container(pod, waiting, restarts=container["restartCount"], lastState=state)
            yield Step("container waits", partial(self._set_container, pod, changed))
        elif "waiting" in state:
            if self._cluster.due(f"back-off {uid} {run}", 1.0, 20.0):
                running = {"running": {"startedAt": self._cluster.stamp()}}
                changed = self._container(pod, running, restarts=run, lastState=container["lastState"])
                yield Step("container restarts", partial(self._restart, pod, changed))
        elif not container["ready"] and component(pod) == COMPONENT_UPLOAD_SERVER:
            yield Step("pod is ready", partial(self._set_container, pod, {**container, "ready": True}))
        elif self._workers.may_end(pod) and self._cluster.due(f"work {uid} {run}", 0.1, 10.0):
            yield Step("container ends", partial(self._end, pod, run))

    def _set_container(self, pod: Object, container: Object) -> None:
        self._cluster.change(PODS, pod, status={"containerStatuses": [container]})

    def _restart(self, pod: Object, container: Object) -> None:
        self._begin_writing(pod)
        self._set_container(pod, container)

    def _end(self, pod: Object, run: int) -> None:
        self.finish(pod, self._workers.end(pod, run))

    def finish(self, pod: Object, end: End) -> None:
        """End the container of a running pod."""
        self._stop_writing(pod, end)
        container = pod["status"]["containerStatuses"][0]
        terminated = {
            "exitCode": end.code,
            "reason": end.reason or ("Completed" if end.code == 0 else "Error"),
            "message": end.message,
            "startedAt": container["state"]["running"]["startedAt"],
            "finishedAt": self._cluster.stamp(),
        }
        restarts = end.code != 0 and pod["spec"]["restartPolicy"] == "OnFailure"
        phase = "Running" if restarts else "Succeeded" if end.code == 0 else "Failed"
        ended = self._container(pod, {"terminated": terminated}, restarts=container["restartCount"])
        if "lastState" in container:
            ended["lastState"] = container["lastState"]
        self._cluster.change(PODS, pod, status={"phase": phase, "containerStatuses": [ended]})

    def evict(self, pod: Object) -> None:
        """Evict a pod: its containers are killed, and it has failed."""
        self._stop_writing(pod, None)
        container = pod["status"]["containerStatuses"][0]
        killed = {"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": self._cluster.stamp()}}
        status = {
            "phase": "Failed",
            "reason": "Evicted",
            "message": "the node was low on memory",
            "containerStatuses": [self._container(pod, killed, restarts=container["restartCount"])],
        }
        self._cluster.change(PODS, pod, status=status)

    def lose(self, node: str) -> None:
        """Remove the pods of a node that is gone for good."""
        for pod in self._server.all(PODS):
            if pod["spec"].get("nodeName") == node:
                for disk in self._cluster.disks.values():
                    disk.lost_ends += disk.filler == pod["metadata"]["uid"]
                self.remove(pod)

    def remove(self, pod: Object) -> None:
        """Remove a pod, whose container is killed if it runs."""
        self._stop_writing(pod, None)
        self._server.remove(
            PODS, pod["metadata"]["namespace"], pod["metadata"]["name"], client="kubelet",
            options={"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}},
        )  # fmt: skip

    # --- content of volumes ---------------------------------------------------------------------------------------

    def _disk(self, pod: Object):
        claim = self._cluster.claim(pod["metadata"]["namespace"], claims_of(pod)[0])
        return self._cluster.disk_of(claim)

    def _begin_writing(self, pod: Object) -> None:
        if not self._workers.writes(pod):
            return
        disk = self._disk(pod)
        if disk is None:
            return
        disk.writers.add(pod["metadata"]["uid"])
        if len(disk.writers) > 1:
            self._cluster.violate("one_writer", f"pods {sorted(disk.writers)} write to {claims_of(pod)[0]} at once")
        disk.content, disk.complete = "", False

    def _stop_writing(self, pod: Object, end: End | None) -> None:
        if not self._workers.writes(pod):
            return
        uid = pod["metadata"]["uid"]
        for disk in self._cluster.disks.values():
            if uid in disk.writers:
                disk.writers.discard(uid)
                if end is not None and end.content is not None:
                    disk.content, disk.complete, disk.filler = end.content, True, uid
                    disk.fills += 1


class JobController:
    """Jobs: one pod each, no retries, deleted some seconds after their end."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._server = cluster.server

    def steps(self) -> Iterator[Step]:
        for job in self._server.all(JOBS):
            metadata, status = job["metadata"], job.get("status") or {}
            if "deletionTimestamp" in metadata:
                continue
            if any(one["type"] in ("Complete", "Failed") for one in status.get("conditions") or ()):
                if self._cluster.due(f"ttl {metadata['uid']}", 10.0, 11.0):
                    yield Step(
                        "job expires",
                        partial(self._server.remove, JOBS, metadata["namespace"], metadata["name"], client="jobs"),
                    )
                continue
            pods = [pod for pod in self._server.all(PODS) if owned_by(pod, metadata["uid"])]
            if not pods:
                yield Step("job starts pod", partial(self._start, job))
            elif pods[0]["status"].get("phase") in TERMINAL:
                yield Step("job ends", partial(self._end, job, pods[0]["status"]["phase"]))

    def _start(self, job: Object) -> None:
        template, metadata = job["spec"]["template"], job["metadata"]
        owner = {
            "apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"],
            "controller": True,
        }  # fmt: skip
        labels = {**(template["metadata"].get("labels") or {}), "batch.kubernetes.io/job-name": metadata["name"]}
        self._server.perform(
            "create",
            PODS,
            {
                "metadata": {
                    **template["metadata"],
                    "namespace": metadata["namespace"],
                    "name": f"{metadata['name']}-pod-{metadata['uid'][-4:]}",
                    "labels": {**labels, "job-name": metadata["name"]},
                    "ownerReferences": [owner],
                },
                "spec": template["spec"],
            },
            client="jobs",
        )
        self._cluster.change(JOBS, job, status={"active": 1})

    def _end(self, job: Object, phase: str) -> None:
        kind = "Complete" if phase == "Succeeded" else "Failed"
        condition = {"type": kind, "status": "True", "lastTransitionTime": self._cluster.stamp()}
        self._cluster.change(JOBS, job, status={"active": None, "conditions": [condition]})


class GarbageCollector:
    """Deletes objects whose owners are all gone."""

    def __init__(self, cluster: Cluster) -> None:
        self._clean_at = 0
        """Version of the API server at which there was no garbage."""
        self._cluster = cluster
        self._server = cluster.server

    def steps(self) -> Iterator[Step]:
        # An object can become an orphan only when something is deleted, or when it is created.
        if self._clean_at == self._server.version:
            return
        clean = True
        known = self._server.uids
        for resource, body in self._server.owned.values():
            metadata = body["metadata"]
            owners = metadata["ownerReferences"]
            if "deletionTimestamp" not in metadata and all(owner["uid"] not in known for owner in owners):
                clean = False
                yield Step("collect garbage", partial(self._delete, resource, body))
        if clean:
            self._clean_at = self._server.version

    def _delete(self, resource: Resource, body: Object) -> None:
        metadata = body["metadata"]
        self._server.remove(
            resource, metadata.get("namespace") or "", metadata["name"], client="gc",
            options={"preconditions": {"uid": metadata["uid"]}},
        )  # fmt: skip


def owned_by(body: Object, uid: str) -> bool:
    return any(owner["uid"] == uid for owner in body["metadata"].get("ownerReferences") or ())
