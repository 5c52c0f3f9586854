"""Logs of a DataVolume's worker pods."""

from __future__ import annotations

from collections.abc import Iterator

from cdi.api import names
from cdi.api.errors import NotFound
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, PODS, Object
from cdi.api.phases import Phase
from cdi.client.status_view import phase_of
from cdi.kube.sync import SyncClient
from cdi.reconcile.pods.roles import CONTAINER
from cdi.reconcile.pods.status import container_status, last_termination
from cdi.remote.worker_lookup import find_filling
from cdi.store.base import Key
from cdi.store.cluster_watch import ClusterWatch, ListWatch

_MAX_LINE = 64 << 10
"""Bytes of a line; longer ones are split."""
_FOREVER = 3600.0


def log(calls: SyncClient, key: Key, *, follow: bool) -> Iterator[str]:
    """Yield lines until the pod ends, or with `follow` until the DataVolume `key` is done; raise `NotFound`.

    A PVC of this name without a DataVolume is accepted as well, since its annotations may request an import.
    """
    phase = _phase(calls, key)
    found = find_filling(calls.find, key.namespace, key.name)
    if follow:
        yield from _followed(calls, key, done=phase is not None and phase.final)
        return
    if found.pod is None:
        raise NotFound(_missing(phase), where=str(key), remedy="cdi describe shows its state; -f waits for a worker")
    if not _began(found.pod):
        raise NotFound(
            "the worker has not started",
            where=f"pod {found.pod_name}",
            remedy="cdi describe shows the reason; -f waits for it",
        )
    yield from _lines(calls, found.pod, follow=False)


def _phase(calls: SyncClient, key: Key) -> Phase | None:
    """Return the DataVolume's phase, or None if there is only a PVC."""
    body = calls.find(DATA_VOLUMES, key.namespace, key.name)
    if body is not None:
        return phase_of(body)
    if calls.find(CLAIMS, key.namespace, key.name) is None:
        raise NotFound(f"there is no {key}")
    return None


def _missing(phase: Phase | None) -> str:
    if phase is not None and phase.final:
        return f"it is {phase}, and its worker pod was deleted with its log"
    return "there is no worker pod yet"


def _followed(calls: SyncClient, key: Key, *, done: bool) -> Iterator[str]:
    """Yield the lines of one attempt after the other."""
    seen: set[tuple[str, int]] = set()
    """UID of the pod, and restarts of its container."""
    sources = [
        ListWatch(resource=DATA_VOLUMES, namespace=key.namespace, name=key.name),
        ListWatch(resource=CLAIMS, namespace=key.namespace, name=key.name),
        ListWatch(
            resource=PODS,
            namespace=key.namespace,
            labels=f"{names.LABEL_COMPONENT}={names.COMPONENT_IMPORTER}",
        ),
    ]
    look = True
    with ClusterWatch(calls, sources) as watch:
        while True:
            pod = find_filling(calls.find, key.namespace, key.name).pod if look else None
            run = (pod["metadata"]["uid"], container_status(pod).get("restartCount") or 0) if pod is not None else None
            if pod is not None and run is not None and run not in seen and _began(pod):
                seen.add(run)
                yield from _lines(calls, pod, follow=True)
                continue
            if done:
                return
            changes = watch.poll(_FOREVER)
            look = any(change.key.plural != DATA_VOLUMES.plural for change in changes)
            for change in changes:
                if change.key == key:
                    done = change.type == "DELETED" or phase_of(change.body).final
                    look = look or done


def _began(pod: Object) -> bool:
    container = container_status(pod)
    return "running" in (container.get("state") or {}) or last_termination(container) is not None


def _lines(calls: SyncClient, pod: Object, *, follow: bool) -> Iterator[str]:
    metadata = pod["metadata"]
    rest = b""
    for piece in calls.stream(calls.client.logs(metadata["namespace"], metadata["name"], CONTAINER, follow=follow)):
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
        if len(rest) > _MAX_LINE:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")
