"""Tests of clone authorization: which token allows which clone, among all that a client could present."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from cdi.api.errors import ClusterUnavailable
from cdi.api.meta import ObjectMeta
from cdi.controller.clone_lister import InformerCloneLister, claims_of
from cdi.kube.jwt import Operation, SigningKey
from cdi.reconcile.clone.authorization import authorize
from cdi.reconcile.clone.types import CloneAuthorization
from cdi.reconcile.types import Clone, Pending, Rejected

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
MADE = 1_800_000_000
SHORT, LASTING = "cdi.kubevirt.io/storage.clone.token", "cdi.kubevirt.io/storage.extended.clone.token"
LEAVE = CloneAuthorization(
    kind="PersistentVolumeClaim", namespace="gold", name="fedora", target_namespace="ns", target_name="a"
)
WITH_TARGET_UID = replace(LEAVE, target_uid="uid-1")
ORIGIN = Clone(namespace="gold", name="fedora")


def signed(grant=LEAVE, *, key=KEY, at=MADE, operation=Operation.CLONE):
    return key.sign(replace(claims_of(grant), operation=operation), at)


def ask(own=None, on_claim=None, *, origin=ORIGIN, synthetic=False, now=MADE + 10, key=KEY):
    clones = InformerCloneLister(None, None, None)
    clones.key = key
    metadata = ObjectMeta(
        name="a", namespace="ns", uid="uid-1", annotations=own or {}, creation_timestamp="2027-01-15T08:00:00Z"
    )
    context = SimpleNamespace(
        datavolume=SimpleNamespace(metadata=metadata), synthetic=synthetic, now=float(now), clones=clones
    )
    return authorize(context, origin, SimpleNamespace(annotations=on_claim) if on_claim is not None else None)


def test_within_a_namespace_nothing_is_needed():
    assert ask(origin=Clone(namespace="ns", name="fedora")) is None


def test_what_was_signed_when_it_was_made_is_good_however_late_it_is_looked_at():
    assert ask({SHORT: signed()}) == WITH_TARGET_UID
    assert ask({SHORT: signed()}, now=MADE + 1_000_000) == WITH_TARGET_UID


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("of an upload", signed(operation=Operation.UPLOAD)),
        ("of another key", signed(key=OTHER)),
        ("expired when it was made", signed(at=MADE - 301)),
        ("of a time to come", signed(at=MADE + 3600)),
        ("of another name", signed(replace(LEAVE, target_name="b"))),
        ("of another namespace", signed(replace(LEAVE, target_namespace="other"))),
        ("of another source", signed(replace(LEAVE, name="secret"))),
        ("of a source elsewhere", signed(replace(LEAVE, namespace="other"))),
        ("of a snapshot", signed(replace(LEAVE, kind="VolumeSnapshot"))),
        ("of another DataVolume", signed(replace(LEAVE, target_uid="uid-2"))),
        ("noise", "a.b.c"),
        ("nothing", ""),
        ("altered", signed()[:-8] + "AAAAAAAA"),
    ],
    ids=lambda value: value if " " in value or len(value) < 10 else "",
)
def test_every_other_token_is_none(name, token):
    for annotation in (SHORT, LASTING):
        found = ask({annotation: token})
        assert isinstance(found, Rejected), name
        assert found.failure.code == "CloneUnauthorised"


def test_what_the_webhook_signs_counts_on_a_datavolume_only():
    """Claims pass no webhook that checks permissions."""
    assert isinstance(ask({}, {SHORT: signed()}), Rejected)
    assert isinstance(ask({}, {LASTING: signed()}), Rejected)
    assert isinstance(ask({LASTING: signed()}), Rejected)
    assert isinstance(ask({SHORT: signed()}, {SHORT: signed()}, synthetic=True), Rejected)
    assert isinstance(ask({LASTING: signed()}, {LASTING: signed()}, synthetic=True), Rejected)


def test_one_that_lasts_is_for_one_datavolume():
    late = MADE + 250
    assert ask({}, {LASTING: signed(WITH_TARGET_UID)}, now=late) == WITH_TARGET_UID
    assert isinstance(ask({}, {LASTING: signed(replace(WITH_TARGET_UID, target_uid="uid-2"))}, now=late), Rejected)
    assert isinstance(ask({}, {LASTING: signed(WITH_TARGET_UID)}, now=MADE + 301), Rejected)


def test_a_source_that_moved_is_named_with_where_it_was():
    """A DataSource may change after the permission was checked; the token is for the source at that time."""
    found = ask({SHORT: signed()}, origin=Clone(namespace="gold", name="secret"))
    assert isinstance(found, Rejected)
    assert (
        "gold/fedora was authorized to be cloned into ns/a, but its source is now gold/secret" in found.failure.message
    )
    assert "apply it again" in found.failure.message


def test_while_there_is_no_key_it_is_waited_for():
    found = ask({SHORT: signed()}, key=None)
    assert isinstance(found, Pending)
    assert found.reason == ClusterUnavailable("x").code
