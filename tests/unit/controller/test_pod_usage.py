"""Tests of the detection of other pods that use a claim."""

from __future__ import annotations

from cdi.api.kinds import PODS
from cdi.controller.pod_usage import PodUsageTracker, _claims, users_of
from cdi.controller.request import Scope
from tests.unit.controller.objects import added, body, deleted, modified


def pod(name: str, *claims: str, **spec):
    volumes = [{"name": f"v{at}", "persistentVolumeClaim": {"claimName": claim}} for at, claim in enumerate(claims)]
    given = body(PODS, name, spec={"volumes": [*volumes, {"name": "t", "emptyDir": {}}], **spec}, status={"a": 1})
    return _claims(given)


def made() -> tuple[PodUsageTracker, list[tuple[str, str]]]:
    freed: list[tuple[str, str]] = []
    return PodUsageTracker(None, Scope(), on_release=lambda *place: freed.append(place)), freed  # type: ignore[arg-type]


def test_they_are_known_from_their_making_to_their_end() -> None:
    users, freed = made()
    one, two = pod("one", "a", "b"), pod("two", "a")
    users.changed(added(one))
    users.changed(added(two))
    users.changed(modified(two, pod("two", "a")))
    assert users.pods_using("ns", "a") == ("one", "two")
    assert (users.pods_using("ns", "b"), users.pods_using("ns", "c"), users.pods_using("other", "a")) == (
        ("one",),
        (),
        (),
    )
    assert not freed
    users.changed(deleted(one))
    assert users.pods_using("ns", "a") == ("two",)
    assert freed == [("ns", "a"), ("ns", "b")]
    users.changed(deleted(two))
    assert not users._by_claim


def test_nothing_else_of_them_is_kept() -> None:
    kept = pod("one", "a", containers=[{"env": [{"name": "PASSWORD", "value": "hush"}]}])
    assert kept["claims"] == ("a",)
    assert set(kept) == {"metadata", "claims"}


def test_the_temporary_first_consumer_of_a_machine_uses_nothing() -> None:
    users, _ = made()
    given = body(PODS, "one", spec={"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "a"}}]})
    assert users_of([given], "a") == ("one",)
    given["metadata"]["annotations"] = {"kubevirt.io/ephemeral-provisioning": "true"}
    users.changed(added(_claims(given)))
    assert users.pods_using("ns", "a") == users_of([given], "a") == ()


def test_it_says_that_it_knows_nothing_yet() -> None:
    assert "pods: not listed yet" in made()[0].missing()
