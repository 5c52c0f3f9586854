"""What must hold in every run: at each write, or at the end, when the cluster is quiet."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from cdi.api.kinds import (
    CLAIMS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    EVENTS,
    JOBS,
    OBJECT_TRANSFERS,
    PODS,
    SECRETS,
    SERVICES,
    VOLUME_IMPORT_SOURCES,
    VOLUME_SNAPSHOTS,
    VOLUMES,
    Object,
    Resource,
)
from cdi.api.names import LABEL_APP, LABEL_DATA_IMPORT_CRON
from cdi.controller.informers import InformerSet
from tests.simulation.api_server import Request
from tests.simulation.attempts import AttemptInvariants
from tests.simulation.caches import CacheInvariants
from tests.simulation.cluster import TERMINAL, Cluster, Disk, written_claims
from tests.simulation.faults import Fault
from tests.simulation.users import Users

MAX_WRITES_AT_REST = 100
"""Write requests of controllers in a cluster to which nothing is done, at most."""
MAX_WRITES_OF_OPERATION = 75
"""Write requests that one operation of a user causes, at most, all attempts and boot proofs included."""
MAX_WRITES_OF_FAULT = 50
"""Write requests that one fault causes, at most: those of a controller that starts again, for instance."""
MAX_WRITES_OF_OVERLAP = 150
"""The same for each second of two controllers at once: with caches of different age, they overwrite each other's status."""
MAX_EVENTS = 40
"""Events about one object, at most."""
MAX_REPEATS = 60
"""How often one event is repeated, at most."""


class Invariants:
    """The invariants, each a method whose docstring is its sentence."""

    def __init__(self, cluster: Cluster, users: Users, *, operations: int, faults: Sequence[Fault]) -> None:
        """Start with the number of users' operations and the faults in the plan."""
        overlap = sum(fault.seconds for fault in faults if fault.kind == "overlap")
        self.max_writes = (
            MAX_WRITES_AT_REST
            + MAX_WRITES_OF_OPERATION * operations
            + MAX_WRITES_OF_FAULT * len(faults)
            + round(MAX_WRITES_OF_OVERLAP * overlap)
        )
        self._reported = False
        attempts = AttemptInvariants(cluster, steady_clock=all(fault.kind != "set clock" for fault in faults))
        self._caches = CacheInvariants(cluster.server)
        cluster.server.sent = self.sent
        cluster.server.answered = self._caches.record
        self._cluster = cluster
        self._server = cluster.server
        self._users = users
        self.at_each_write: tuple[Callable[[Request, Resource, Object | None, Object | None], Iterator[str]], ...] = (
            self.offered_is_verified,
            self.users_data_is_kept,
            self.phases_follow_allowed_edges,
            self.writes_name_the_object,
            self.nothing_starts_after_the_end,
            self.offered_is_not_removed,
            self.sources_are_never_written,
            attempts.attempts_are_counted_once,
            attempts.retry_limits_hold,
        )
        self.at_each_request: tuple[Callable[[Request], Iterator[str]], ...] = (
            self.writes_are_bounded,
            self._caches.own_writes_are_known,
        )
        self.at_the_end: tuple[Callable[[], Iterator[str]], ...] = (
            self.nothing_leaks,
            self.no_volume_without_owner,
            self.succeeded_means_complete,
            self.data_volumes_end_as_their_source_says,
            self.events_are_bounded,
            self.transfers_end,
        )

    def changed(self, request: Request, resource: Resource, old: Object | None, new: Object | None) -> None:
        """Check a change, as a listener of the API server."""
        for check in self.at_each_write:
            for text in check(request, resource, old, new):
                self._cluster.violate(check.__name__, text)

    def sent(self, request: Request) -> None:
        """Check a request of a controller before the API server receives it."""
        for check in self.at_each_request:
            for text in check(request):
                self._cluster.violate(check.__name__, text)

    def check_caches(self, name: str, caches: InformerSet) -> None:
        """Check the caches of a controller in a cluster that is quiet."""
        for text in self._caches.caches_match_the_server(name, caches):
            self._cluster.violate("caches_match_the_server", text)

    def finish(self) -> None:
        """Check the state of a cluster that is quiet."""
        for check in self.at_the_end:
            for text in check():
                self._cluster.violate(check.__name__, text)

    # --- at each write --------------------------------------------------------------------------------------------

    def offered_is_verified(
        self, _: Request, resource: Resource, __: Object | None, new: Object | None
    ) -> Iterator[str]:
        """A managed DataSource refers only to volumes that are complete, and proven if a proof is required."""
        if (
            resource != DATA_SOURCES
            or new is None
            or LABEL_DATA_IMPORT_CRON not in (new["metadata"].get("labels") or {})
        ):
            return
        disk = self._offered_disk(new)
        if disk is None:
            return
        if not disk.complete:
            yield f"{_place(new)} offers an incomplete volume"
        if disk.content in self._users.bad_contents and self._proves(new):
            yield f"{_place(new)} offers {disk.content}, which does not boot"

    def users_data_is_kept(
        self, request: Request, resource: Resource, old: Object | None, new: Object | None
    ) -> Iterator[str]:
        """A controller deletes no PVC, snapshot or volume of a user, and no volume disappears with data that is kept."""
        if not _by_controller(request) or request.verb != "delete" or old is None:
            return
        metadata = old["metadata"]
        name = metadata["name"]
        if resource == VOLUMES or (resource == VOLUME_SNAPSHOTS and LABEL_APP not in (metadata.get("labels") or {})):
            yield f"{resource.plural} {name} was deleted by a controller"
        if resource == CLAIMS and not _is_temporary(name):
            disk = self._cluster.disk_of(old)
            moved = any(_moves(transfer, old) for transfer in self._server.all(OBJECT_TRANSFERS))
            if (
                disk is not None
                and disk.complete
                and not moved
                and LABEL_DATA_IMPORT_CRON not in (metadata.get("labels") or {})
            ):
                yield f"PVC {name} with data was deleted by a controller"

    def phases_follow_allowed_edges(
        self, request: Request, resource: Resource, old: Object | None, new: Object | None
    ) -> Iterator[str]:
        """A DataVolume that has Succeeded or Failed stays so, and none goes back to no phase."""
        if resource != DATA_VOLUMES or old is None or new is None:
            return
        before, after = ((one.get("status") or {}).get("phase", "") for one in (old, new))
        if before in TERMINAL and after != before and self._place(new) not in self._users.disturbed:
            yield f"DataVolume {_place(new)} went from {before} to {after!r}"
        if before and not after:
            yield f"DataVolume {_place(new)} lost its phase {before}"

    def writes_name_the_object(
        self, request: Request, resource: Resource, old: Object | None, __: Object | None
    ) -> Iterator[str]:
        """Each patch and deletion of a controller names the UID of the object that it is meant for."""
        if not _by_controller(request) or request.verb not in ("patch", "delete") or resource == EVENTS:
            return
        body = request.body or {}
        stated = (body.get("metadata") or {}) if request.verb == "patch" else (body.get("preconditions") or {})
        if "uid" not in stated:
            yield f"{request} names no UID"

    def nothing_starts_after_the_end(
        self, request: Request, resource: Resource, old: Object | None, new: Object | None
    ) -> Iterator[str]:
        """No worker pod is created for a DataVolume that has Succeeded or Failed."""
        if resource != PODS or old is not None or new is None or not _by_controller(request):
            return
        owner = (new["metadata"].get("annotations") or {}).get("cdi.kubevirt.io/ownerUID")
        if (new["metadata"].get("labels") or {}).get("cdi.kubevirt.io") not in ("importer", "cdi-upload-server"):
            return
        for claim in self._server.all(CLAIMS):
            if claim["metadata"]["uid"] == owner:
                found = self._server.find(DATA_VOLUMES, claim["metadata"]["namespace"], claim["metadata"]["name"])
                phase = ((found or {}).get("status") or {}).get("phase")
                if phase in TERMINAL:
                    yield f"pod {new['metadata']['name']} was created for a DataVolume that is {phase}"

    def offered_is_not_removed(
        self, request: Request, resource: Resource, old: Object | None, new: Object | None
    ) -> Iterator[str]:
        """Retention removes nothing that a DataSource offers or that is being cloned."""
        if request.verb != "delete" or not _by_controller(request) or old is None:
            return
        if resource not in (CLAIMS, VOLUME_SNAPSHOTS, DATA_VOLUMES):
            return
        cron = (old["metadata"].get("labels") or {}).get(LABEL_DATA_IMPORT_CRON)
        namespace, name = old["metadata"]["namespace"], old["metadata"]["name"]
        if cron is None or self._server.find(DATA_IMPORT_CRONS, namespace, cron) is None:
            return
        for source in self._server.all(DATA_SOURCES):
            for form, place in source["spec"]["source"].items():
                same = (place.get("namespace"), place.get("name")) == (namespace, name)
                if same and (form == "snapshot") == (resource == VOLUME_SNAPSHOTS):
                    if resource != DATA_VOLUMES or form == "pvc":
                        yield f"{resource.plural} {name} was deleted, which {_place(source)} offers"

    def sources_are_never_written(
        self, request: Request, resource: Resource, old: Object | None, new: Object | None
    ) -> Iterator[str]:
        """No pod of a controller mounts for writing a PVC that is complete, such as the source of a clone."""
        if resource != PODS or old is not None or new is None or not _by_controller(request):
            return
        for name in written_claims(new):
            disk = self._cluster.disk_of(self._cluster.claim(new["metadata"]["namespace"], name))
            if disk is not None and disk.complete and not _is_temporary(name):
                yield f"pod {new['metadata']['name']} mounts PVC {name} for writing"

    def writes_are_bounded(self, _: Request) -> Iterator[str]:
        """The number of write requests of controllers is bounded by the numbers of users' operations and of faults."""
        if not self._reported and self.writes > self.max_writes:
            self._reported = True
            yield f"controllers sent more than {self.max_writes} write requests"

    @property
    def writes(self) -> int:
        """Number of write requests of controllers until now, with those that changed nothing."""
        return sum(count for client, count in self._server.writes.items() if client.startswith("controller-"))

    # --- at the end -----------------------------------------------------------------------------------------------

    def nothing_leaks(self) -> Iterator[str]:
        """No temporary object is left without a DataVolume, PVC or DataImportCron that still needs it."""
        busy = any((body.get("status") or {}).get("phase") not in TERMINAL for body in self._server.all(DATA_VOLUMES))
        unfilled = any(
            claim["status"].get("phase") != "Bound" and claim["spec"].get("dataSourceRef")
            for claim in self._server.all(CLAIMS)
            if not claim["metadata"]["name"].startswith(("prime-", "tmp-"))
        )
        for resource, body in self._server.everything():
            metadata = body["metadata"]
            name = metadata["name"]
            temporary = (
                (resource == CLAIMS and _is_temporary(name))
                or (resource == PODS and (metadata.get("labels") or {}).get(LABEL_APP))
                or (resource == SERVICES)
                or (resource == JOBS)
                or (resource == SECRETS and metadata["namespace"] != "cdi")
                or (resource == VOLUME_SNAPSHOTS and name.startswith("tmp-"))
            )
            if temporary and not busy and not unfilled:
                yield f"{resource.plural} {_place(body)} is left"
            if "deletionTimestamp" in metadata and not busy:
                yield f"{resource.plural} {_place(body)} is being deleted for ever: {metadata.get('finalizers')}"
            if resource == VOLUME_IMPORT_SOURCES and name.startswith("volume-import-source-"):
                owners = {owner["uid"] for owner in metadata.get("ownerReferences") or ()}
                if not owners & {one["metadata"]["uid"] for one in self._server.all(DATA_VOLUMES)}:
                    yield f"{resource.plural} {name} is left"

    def no_volume_without_owner(self) -> Iterator[str]:
        """Each PersistentVolume is bound to a PVC, and is deleted with it."""
        for volume in self._server.all(VOLUMES):
            name, ref, policy = (
                volume["metadata"]["name"],
                volume["spec"].get("claimRef") or {},
                volume["spec"]["persistentVolumeReclaimPolicy"],
            )
            claim = self._cluster.claim(ref.get("namespace") or "", ref.get("name") or "")
            if claim is None or claim["metadata"]["uid"] != ref.get("uid"):
                yield f"volume {name} is {volume['status'].get('phase')}, and no PVC owns it"
            elif policy != "Delete":
                yield f"volume {name} would be kept without PVC {_place(claim)}: its reclaim policy is {policy}"

    def succeeded_means_complete(self) -> Iterator[str]:
        """The PVC of a DataVolume that has Succeeded is bound, and its volume was filled by exactly one finished attempt.

        An attempt whose pod went with its node does not count: no controller may have seen its end.
        """
        for body in self._server.all(DATA_VOLUMES):
            if (body.get("status") or {}).get("phase") != "Succeeded" or self._place(body) in self._users.disturbed:
                continue
            if LABEL_DATA_IMPORT_CRON in (body["metadata"].get("labels") or {}):
                continue
            disk = self._cluster.disk_of(self._cluster.claim(*self._place(body)))
            if disk is None:
                yield f"DataVolume {_place(body)} has no bound volume"
            elif not disk.complete or disk.content == "garbage":
                yield f"the volume of DataVolume {_place(body)} is incomplete"
            elif not 1 <= disk.fills <= 1 + disk.lost_ends:
                yield f"the volume of DataVolume {_place(body)} was filled {disk.fills} times"

    def data_volumes_end_as_their_source_says(self) -> Iterator[str]:
        """Each DataVolume ends in the phase that its source determines, and a clone has the content of its source."""
        for body in self._server.all(DATA_VOLUMES):
            place, uid = self._place(body), body["metadata"]["uid"]
            phase = (body.get("status") or {}).get("phase", "")
            if place in self._users.disturbed or self._waits_for_consumer(body):
                continue
            expected, content = self._users.expected.get(uid, ("", ""))
            if uid in self._users.clones:
                source = self._source_disk(*self._users.clones[uid])
                expected, content = ("Succeeded", source.content) if source is not None else ("", "")
            if not expected:
                continue
            if phase != expected:
                yield f"DataVolume {_place(body)} is {phase or 'without a phase'}, not {expected}"
            disk = self._cluster.disk_of(self._cluster.claim(*place))
            if phase == "Succeeded" and disk is not None and disk.content != content:
                yield f"DataVolume {_place(body)} contains {disk.content!r}, not {content!r}"

    def _source_disk(self, kind: str, of: tuple[str, str]) -> Disk | None:
        """Return the content of the source of a clone; None if users interfered with it or it is not complete."""
        disk: Disk | None = None
        if kind == "snapshot":
            found = self._server.find(VOLUME_SNAPSHOTS, *of)
            disk = self._cluster.snapshots.get(found["metadata"]["uid"]) if found is not None else None
        elif kind == "pvc" and of not in self._users.disturbed:
            disk = self._cluster.disk_of(self._cluster.claim(*of))
        elif kind == "sourceRef" and (source := self._server.find(DATA_SOURCES, *of)) is not None:
            if LABEL_DATA_IMPORT_CRON in (source["metadata"].get("labels") or {}):
                return None  # it may have offered another version when the clone began
            places = {(one.get("namespace"), one.get("name")) for one in source["spec"]["source"].values()}
            disk = None if places & self._users.disturbed else self._offered_disk(source)
        return disk if disk is not None and disk.complete else None

    def events_are_bounded(self) -> Iterator[str]:
        """The number of events about an object, and of their repetitions, is bounded."""
        counts: Counter[str] = Counter()
        for event in self._server.all(EVENTS):
            about = event["involvedObject"]
            counts[f"{about['kind']} {about['name']}"] += 1
            if event.get("count", 1) > MAX_REPEATS:
                yield f"the event {event['reason']} about {about['name']} was repeated {event['count']} times"
        for name, count in counts.items():
            if count > MAX_EVENTS:
                yield f"{count} events about {name}"

    def transfers_end(self) -> Iterator[str]:
        """Every ObjectTransfer ends, or has not begun."""
        for transfer in self._server.all(OBJECT_TRANSFERS):
            phase = (transfer.get("status") or {}).get("phase")
            if phase not in ("Complete", "Error", "Pending", None):
                yield f"transfer {transfer['metadata']['name']} is {phase}"

    # --- parts ----------------------------------------------------------------------------------------------------

    def _place(self, body: Object) -> tuple[str, str]:
        return body["metadata"]["namespace"], body["metadata"]["name"]

    def _offered_disk(self, source: Object) -> Disk | None:
        for form, place in source["spec"]["source"].items():
            namespace = place.get("namespace") or source["metadata"]["namespace"]
            if form == "pvc":
                return self._cluster.disk_of(self._cluster.claim(namespace, place["name"]))
            if form == "snapshot":
                snapshot = self._server.find(VOLUME_SNAPSHOTS, namespace, place["name"])
                return self._cluster.snapshots.get(snapshot["metadata"]["uid"]) if snapshot is not None else None
        return None

    def _proves(self, source: Object) -> bool:
        name = source["metadata"]["labels"][LABEL_DATA_IMPORT_CRON]
        cron = self._server.find(DATA_IMPORT_CRONS, source["metadata"]["namespace"], name)
        return cron is not None and "cdi.kubevirt.io/golden.proof" in (cron["metadata"].get("annotations") or {})

    def _waits_for_consumer(self, body: Object) -> bool:
        annotations = body["metadata"].get("annotations") or {}
        claim = self._cluster.claim(*self._place(body))
        return (
            "cdi.kubevirt.io/storage.bind.immediate.requested" not in annotations
            and claim is not None
            and claim["spec"].get("storageClassName") == "local"
            and (body.get("status") or {}).get("phase") in ("PendingPopulation", "WaitForFirstConsumer")
        )


def _by_controller(request: Request) -> bool:
    return request.client.startswith("controller-")


def _is_temporary(claim: str) -> bool:
    return claim.startswith(("prime-", "tmp-")) or claim.endswith("-scratch")


def _moves(transfer: Object, claim: Object) -> bool:
    source = transfer["spec"]["source"]
    return (source["namespace"], source["name"]) == (claim["metadata"]["namespace"], claim["metadata"]["name"])


def _place(body: Object) -> str:
    return f"{body['metadata'].get('namespace') or ''}/{body['metadata']['name']}".strip("/")


def _sentences() -> Iterator[tuple[str, str]]:
    for owner in (Invariants, AttemptInvariants, CacheInvariants):
        for name, function in vars(owner).items():
            if inspect.isgeneratorfunction(function) and not name.startswith("_"):
                yield name, str(function.__doc__)


SENTENCES: dict[str, str] = {
    **dict(_sentences()),
    "one_writer": "No two pods write to a volume at once.",
    "controllers_run": "A controller ends only when it is stopped.",
    "quiescence_is_reached": "The cluster becomes quiet: no controller writes, or runs, without an end.",
}
"""What each invariant requires, by its name."""
