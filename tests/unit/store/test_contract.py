"""The contract of every store; a new store joins by adding its factory to `FACTORIES`.

`tests/cluster/test_store.py` runs the same tests on a real API server.
"""

from __future__ import annotations

import contextlib
import threading

import pytest

from cdi.api.errors import AlreadyExists, CdiError, Conflict, InvalidManifest, NotFound
from cdi.store.base import Key, Store, update_with_retry
from cdi.store.file_store import LocalStore

FACTORIES = {"local": lambda path: LocalStore(path / "objects")}


@pytest.fixture(params=sorted(FACTORIES))
def store(request, tmp_path) -> Store:
    return FACTORIES[request.param](tmp_path)


def volume(name="a", namespace="default", **metadata):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": spec(1),
    }


def spec(stage):
    """Return a DataVolume spec whose stage may change, and nothing else."""
    return {
        "source": {"imageio": {"url": "https://i.test", "diskId": "1", "secretRef": "s", "certConfigMap": "c"}},
        "pvc": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        "checkpoints": [{"current": str(stage), "previous": ""}],
    }


def told(watch, count):
    """Return the next changes as soon as they arrive."""
    changes = []
    while len(changes) < count and (more := watch.poll(30)):
        changes += more
    return changes


KEY = Key("datavolumes", "default", "a")


def test_a_created_object_gets_identity_version_and_time(store):
    made = store.create(volume())
    metadata = made["metadata"]
    assert metadata["uid"]
    assert metadata["resourceVersion"]
    assert metadata["creationTimestamp"].endswith("Z")
    assert metadata["generation"] == 1
    assert store.get(KEY) == made


def test_identity_cannot_be_chosen_by_the_creator(store):
    made = store.create(volume(uid="mine", deletionTimestamp="2020-01-01T00:00:00Z", resourceVersion="7"))
    assert made["metadata"]["uid"] != "mine"
    assert "deletionTimestamp" not in made["metadata"]


def test_a_second_of_the_same_name_is_refused(store):
    store.create(volume())
    with pytest.raises(AlreadyExists):
        store.create(volume())


def test_the_same_name_in_another_namespace_and_kind_is_another_object(store):
    store.create(volume())
    store.create(volume(namespace="other"))
    store.create({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {}})
    assert len(store.list("datavolumes")) == 2
    assert len(store.list("dv", "other")) == 1
    assert len(store.list("cm")) == 1


def test_listing_is_in_the_order_of_namespace_and_name(store):
    for namespace, name in [("b", "x"), ("a", "z"), ("a", "y"), ("a", "y.b"), ("a", "y-b")]:
        store.create(volume(name, namespace))
    order = [(o["metadata"]["namespace"], o["metadata"]["name"]) for o in store.list("dv")]
    assert order == sorted(order)


def test_reading_what_is_not_there(store):
    with pytest.raises(NotFound):
        store.get(KEY)
    assert store.list("datavolumes", "nowhere") == []


def test_a_change_of_spec_raises_version_and_generation(store):
    made = store.create(volume())
    made["spec"] = spec(2)
    changed = store.update(made)
    assert int(changed["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    assert changed["metadata"]["generation"] == 2


def test_a_change_of_metadata_keeps_the_generation(store):
    made = store.create(volume())
    made["metadata"]["labels"] = {"a": "b"}
    changed = store.update(made)
    assert changed["metadata"]["generation"] == 1
    assert changed["metadata"]["labels"] == {"a": "b"}


def test_writing_the_same_keeps_the_version(store):
    made = store.create(volume())
    assert store.update(made) == made
    status = store.update_status({**made, "status": {"phase": "Pending"}})
    assert store.update_status(status) == status


def test_an_outdated_version_conflicts(store):
    old = store.create(volume())
    store.update({**old, "spec": spec(2)})
    with pytest.raises(Conflict):
        store.update({**old, "spec": spec(3)})
    with pytest.raises(Conflict):
        store.update_status({**old, "status": {"phase": "Failed"}})


def test_without_a_version_the_last_writer_wins(store):
    store.create(volume())
    changed = store.update({**volume(), "spec": spec(5)})
    assert changed["spec"] == spec(5)


def test_an_update_of_another_life_conflicts(store):
    first = store.create(volume())
    store.delete(KEY)
    store.create(volume())
    del first["metadata"]["resourceVersion"]
    with pytest.raises(Conflict):
        store.update(first)


def test_status_and_spec_are_written_apart(store):
    made = store.create({**volume(), "status": {"phase": "Succeeded"}})
    assert "status" not in made
    made = store.update_status({**made, "spec": spec(99), "status": {"phase": "Pending"}})
    assert made["spec"] == spec(1)
    assert made["metadata"]["generation"] == 1
    made = store.update({**made, "status": {"phase": "Succeeded"}, "spec": spec(3)})
    assert made["status"] == {"phase": "Pending"}


def test_deletion_and_its_precondition(store):
    made = store.create(volume())
    with pytest.raises(Conflict):
        store.delete(KEY, uid="another")
    assert store.delete(KEY, uid=made["metadata"]["uid"]) is None
    with pytest.raises(NotFound):
        store.delete(KEY)


def test_finalizers_hold_an_object_until_the_last_is_taken_off(store):
    made = store.create(volume(finalizers=["one", "two"]))
    marked = store.delete(KEY)
    assert marked["metadata"]["deletionTimestamp"]
    again = store.delete(KEY)
    assert again["metadata"]["deletionTimestamp"] == marked["metadata"]["deletionTimestamp"]
    marked["metadata"]["finalizers"] = ["two"]
    marked = store.update(marked)
    with pytest.raises(InvalidManifest):
        store.update({**marked, "metadata": {**marked["metadata"], "finalizers": ["two", "three"]}})
    assert store.get(KEY)["metadata"]["uid"] == made["metadata"]["uid"]
    marked["metadata"]["finalizers"] = []
    store.update(marked)
    with pytest.raises(NotFound):
        store.get(KEY)


def test_a_deletion_cannot_be_taken_back(store):
    store.create(volume(finalizers=["one"]))
    marked = store.delete(KEY)
    del marked["metadata"]["deletionTimestamp"]
    assert store.update(marked)["metadata"]["deletionTimestamp"]


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        ("default", "../../etc/passwd"),
        ("default", ".."),
        ("default", "a/b"),
        ("default", "A"),
        ("default", "a_b"),
        ("default", ""),
        ("default", "a\n"),
        ("default", "a\x00b"),
        ("default", "-a"),
        ("default", "a" * 254),
        ("../x", "a"),
        ("_cluster", "a"),
        ("a.b", "a"),
        ("a" * 64, "a"),
        ("x/y", "a"),
    ],
)
def test_names_that_no_api_server_takes_are_refused(store, namespace, name):
    with pytest.raises(CdiError) as caught:
        store.create(volume(name, namespace))
    assert caught.value.code in {"InvalidManifest", "NotFound"}


@pytest.mark.parametrize("body", [{}, {"kind": "DataVolume"}, {"metadata": {"name": "a"}}, {"kind": 1, "metadata": []},
                                  {"kind": "DataVolume", "metadata": {"name": 5}},
                                  {"kind": "DataVolume", "metadata": {"name": "a", "namespace": {}}},
                                  {"kind": "DataVolume", "metadata": {"name": "a"}, "spec": {"x": float("nan")}},
                                  {"kind": "DataVolume", "metadata": {"name": "a"}, "spec": {"x": object()}}])  # fmt: skip
def test_what_is_no_object_is_refused(store, body):
    with pytest.raises(InvalidManifest):
        store.create(body)


def test_the_longest_names_are_kept_apart(store):
    long = "a" * 252
    one, two = store.create(volume(long + "b")), store.create(volume(long + "c"))
    assert store.get(Key.of("dv", "default", long + "b")) == one
    assert store.get(Key.of("dv", "default", long + "c")) == two
    assert len(store.list("dv")) == 2


def test_what_was_given_or_taken_is_not_shared(store):
    body = volume()
    made = store.create(body)
    body["spec"] |= spec(77)
    made["spec"] |= spec(78)
    assert store.get(KEY)["spec"] == spec(1)


def test_a_watch_begins_with_everything_and_goes_on_with_changes(store):
    store.create(volume("a"))
    with store.watch(["datavolumes"]) as watch:
        assert [(c.type, c.key.name) for c in told(watch, 1)] == [("ADDED", "a")]
        assert watch.poll(0) == []
        made = store.create(volume("b"))
        store.create({"kind": "ConfigMap", "metadata": {"name": "c"}})
        assert [(c.type, c.key.name) for c in told(watch, 1)] == [("ADDED", "b")]
        store.update_status({**made, "status": {"phase": "Pending"}})
        assert [(c.type, c.body["status"]["phase"]) for c in told(watch, 1)] == [("MODIFIED", "Pending")]
        store.delete(KEY)
        assert [(c.type, c.key.name) for c in told(watch, 1)] == [("DELETED", "a")]


def test_a_watch_tells_a_new_life_from_the_old(store):
    store.create(volume())
    with store.watch(["dv"]) as watch:
        watch.poll(0)
        store.delete(KEY)
        store.create(volume())
        assert [c.type for c in told(watch, 2)] == ["DELETED", "ADDED"]


def test_a_watch_wakes_while_it_waits(store):
    with store.watch(["dv"]) as watch:
        writer = threading.Timer(0.05, lambda: store.create(volume()))
        writer.start()
        changes = watch.poll(30)
        writer.join()
    assert [c.type for c in changes] == ["ADDED"]


def test_amending_repeats_when_somebody_else_was_faster(store):
    store.create(volume())
    calls = []

    def change(body):
        if not calls:
            calls.append(1)
            store.update({**store.get(KEY), "spec": spec(9)})
        body["metadata"].setdefault("labels", {})["x"] = "y"

    amended = update_with_retry(store, KEY, change)
    assert amended["spec"] == spec(9)
    assert amended["metadata"]["labels"] == {"x": "y"}


def test_amending_another_life_is_refused(store):
    store.create(volume())
    with pytest.raises(NotFound):
        update_with_retry(store, KEY, lambda _: None, uid="another")


def test_of_many_creators_at_once_one_wins(store):
    won = []

    def create():
        with contextlib.suppress(AlreadyExists):
            won.append(store.create(volume())["metadata"]["uid"])

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [store.get(KEY)["metadata"]["uid"]]
