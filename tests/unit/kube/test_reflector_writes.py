"""Results of our own writes are visible at once, and no older state replaces them."""

from __future__ import annotations

from cdi.api.kinds import CONFIG_MAPS
from cdi.kube.reflector import Reflector, WatchEvent


def item(version: int, uid: str = "u1", name: str = "a"):
    return {"metadata": {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": str(version)}}


class Seen:
    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []
        self.reflector = Reflector(None, CONFIG_MAPS, on_change=self.changed)  # type: ignore[arg-type]

    def changed(self, change: WatchEvent) -> None:
        self.changes.append((change.type, change.object["metadata"]["resourceVersion"]))

    def event(self, kind: str, body) -> None:
        self.reflector._event({"type": kind, "object": body})

    @property
    def version(self) -> str | None:
        found = self.reflector.cache.get("ns", "a")
        return None if found is None else found["metadata"]["resourceVersion"]


def test_it_is_told_at_once_and_not_again_by_the_watch() -> None:
    seen = Seen()
    seen.event("ADDED", item(5))
    seen.reflector.record_write(item(9))
    assert seen.version == "9"
    seen.event("MODIFIED", item(7))
    seen.event("MODIFIED", item(9))
    assert seen.changes == [("ADDED", "5"), ("MODIFIED", "9")]
    seen.event("MODIFIED", item(11))
    assert seen.version == "11"


def test_an_older_write_does_not_come_over_what_the_watch_told() -> None:
    seen = Seen()
    seen.event("ADDED", item(9))
    seen.reflector.record_write(item(7))
    assert seen.version == "9"


def test_the_end_of_a_predecessor_does_not_end_its_successor() -> None:
    seen = Seen()
    seen.event("ADDED", item(5))
    seen.reflector.record_write(item(9, uid="u2"))
    assert seen.changes == [("ADDED", "5"), ("DELETED", "5"), ("ADDED", "9")]
    seen.event("MODIFIED", item(7))
    seen.event("DELETED", item(8))
    assert seen.version == "9"
    seen.event("ADDED", item(9, uid="u2"))
    seen.event("DELETED", item(12, uid="u2"))
    assert seen.version is None


def test_a_list_of_before_does_not_take_it_away_and_a_later_one_does() -> None:
    seen = Seen()
    seen.reflector.record_write(item(9))
    seen.reflector._replace([], 8)
    assert seen.version == "9"
    seen.reflector._replace([item(6)], 8)
    assert seen.version == "9"
    seen.reflector._replace([], 10)
    assert seen.version is None


def test_a_server_whose_versions_went_back_is_believed() -> None:
    seen = Seen()
    seen.event("ADDED", item(900))
    seen.reflector._replace([item(5)], 6)
    assert seen.version == "5"


def test_what_a_request_did_not_find_is_gone_at_once() -> None:
    seen = Seen()
    seen.event("ADDED", item(5))
    seen.reflector.record_deletion("ns", "a", "u1")
    assert seen.changes == [("ADDED", "5"), ("DELETED", "5")]
    seen.event("MODIFIED", item(6))
    seen.reflector._replace([item(7)], 7)
    seen.event("DELETED", item(8))
    assert seen.changes == [("ADDED", "5"), ("DELETED", "5")]
    seen.event("ADDED", item(9, uid="u2"))
    assert seen.version == "9"


def test_what_a_request_did_not_find_is_cached_again_if_another_list_has_it() -> None:
    seen = Seen()
    seen.event("ADDED", item(5))
    seen.reflector.record_deletion("ns", "a", "u1")
    seen.reflector._replace([], 6)
    seen.reflector._replace([item(7)], 7)  # of a server whose data was restored
    assert seen.version == "7"


def test_a_successor_stays_when_its_predecessor_is_not_found() -> None:
    seen = Seen()
    seen.event("ADDED", item(5))
    seen.reflector.record_write(item(9, uid="u2"))
    seen.reflector.record_deletion("ns", "a", "u1")
    assert seen.version == "9"
