"""The cluster store on a real API server: the contract of every store, and its own behaviour."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace

import pytest

from cdi.api.errors import NotFound
from cdi.store.base import Key, update_with_retry
from cdi.store.cluster import ClusterStore
from tests.unit.store.test_contract import *  # noqa: F403  the contract's tests themselves

SPACES = ("default", "other", "a", "b")


class Placed:
    """A store restricted to some namespaces, with other names for them in the cluster."""

    def __init__(self, store: ClusterStore, names: dict[str, str]) -> None:
        self.store = store
        self.names = names
        self.back = {real: name for name, real in names.items()}

    def outwards(self, key: Key) -> Key:
        return replace(key, namespace=self.names.get(key.namespace, key.namespace))

    def inwards(self, body):
        metadata = {**body["metadata"], "namespace": self.back[body["metadata"]["namespace"]]}
        return {**body, "metadata": metadata}

    def placed(self, body):
        key = Key.of_object(body)
        real = self.names.get(key.namespace, key.namespace)
        return {**body, "metadata": {**body["metadata"], "namespace": real}}

    def ours(self, body) -> bool:
        return body["metadata"]["namespace"] in self.back and body["metadata"]["name"] != "kube-root-ca.crt"

    def get(self, key):
        return self.inwards(self.store.get(self.outwards(key)))

    def list(self, plural, namespace=None):
        found = self.store.list(plural, namespace and self.names.get(namespace, namespace))
        return sorted((self.inwards(each) for each in found if self.ours(each)), key=Key.of_object)

    def create(self, body):
        return self.inwards(self.store.create(self.placed(body)))

    def update(self, body):
        return self.inwards(self.store.update(self.placed(body)))

    def update_status(self, body):
        return self.inwards(self.store.update_status(self.placed(body)))

    def delete(self, key, *, uid=None):
        marked = self.store.delete(self.outwards(key), uid=uid)
        return marked and self.inwards(marked)

    @contextlib.contextmanager
    def watch(self, plurals):
        with self.store.watch(plurals) as watch:
            yield PlacedWatch(self, watch)


class PlacedWatch:
    def __init__(self, placed: Placed, watch) -> None:
        self.placed = placed
        self.watch = watch

    def poll(self, timeout):
        """Poll the underlying watch, ignoring changes by other users of the shared cluster."""
        deadline = time.monotonic() + timeout
        while True:
            changes = [
                replace(change, key=replace(change.key, namespace=self.placed.back[change.key.namespace]))
                for change in self.watch.poll(max(0.0, deadline - time.monotonic()))
                if self.placed.ours(change.body)
            ]
            if changes or time.monotonic() >= deadline:
                return changes


@pytest.fixture(scope="module")
def cluster_store(cluster):
    cluster.kubectl.run("apply", "--server-side", "--force-conflicts", "--filename=crds/")
    cluster.kubectl.run("wait", "--for=condition=Established", "crd/datavolumes.cdi.kubevirt.io")
    with ClusterStore.connect(str(cluster.kubectl.kubeconfig)) as store:
        yield store


@pytest.fixture(scope="module")
def placed(cluster, cluster_store):
    with contextlib.ExitStack() as stack:
        names = {name: stack.enter_context(cluster.namespace("a-store")).namespace for name in SPACES}
        yield Placed(cluster_store, names)


@pytest.fixture()
def store(placed):  # the fixture that the contract tests request
    yield placed
    for plural in ("datavolumes", "configmaps", "datasources", "events"):
        for body in placed.list(plural):
            with contextlib.suppress(NotFound):
                update_with_retry(placed, Key.of_object(body), lambda each: each["metadata"].pop("finalizers", None))
                placed.delete(Key.of_object(body))


def test_what_happens_to_others_ends_no_wait_for_ours(placed, cluster):
    """Other tests use the cluster at the same time; without this, the contract tests would fail occasionally."""
    with cluster.namespace("not-a-store") as other, placed.watch(["datavolumes"]) as watch:
        placed.store.create(volume("theirs", other.namespace))  # noqa: F405
        ours = threading.Timer(1.0, lambda: placed.create(volume("ours")))  # noqa: F405
        ours.start()
        try:
            assert [change.key.name for change in watch.poll(30)] == ["ours"]
        finally:
            ours.join()
            placed.delete(Key("datavolumes", "default", "ours"))
