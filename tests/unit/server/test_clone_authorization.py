"""Tests of the permission to clone a volume of another namespace."""

from __future__ import annotations

import base64
import json

import pytest

from cdi.api.errors import ClusterUnavailable, NotFound
from cdi.api.validation import parse
from cdi.kube.jwt import Operation, SigningKey
from cdi.server.clone_authorization import authorise
from cdi.server.review import Allowed, Refused, answer, read
from tests.unit.server.reviews import BY_NAME, body

HOOK = BY_NAME["datavolume-mutate"]
KEY = SigningKey.generate()
NOW = 1_800_000_000.0
OWN = ("cdi.kubevirt.io", "datavolumes", "source")
PODS = ("", "pods", "")
CLAIMS = ("", "persistentvolumeclaims", "")
PVCS = ("", "pvcs", "")


class Access:
    def __init__(self, *rights, data_sources=(), annotations=None):
        self.rights = set(rights)
        self.annotations = annotations
        self.sources = {(one["metadata"]["namespace"], one["metadata"]["name"]): parse(one) for one in data_sources}
        self.asked = []

    async def data_source(self, namespace, name):
        return self.sources.get((namespace, name))

    async def may(self, user, attributes):
        self.asked.append((user.name, attributes))
        assert attributes["verb"] == "create"
        right = (attributes["group"], attributes["resource"], attributes.get("subresource", ""))
        return (attributes["namespace"], right) in self.rights

    async def claim(self, namespace, name):
        if isinstance(self.annotations, Exception):
            raise self.annotations
        return {"metadata": {"namespace": namespace, "name": name, "annotations": self.annotations}}

    async def snapshot(self, namespace, name):
        return await self.claim(namespace, name)

    def sign(self, claims):
        return KEY.sign(claims, NOW)


def clone(source, **metadata):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "mine", "namespace": "default", **metadata},
        "spec": {**source, "storage": {}},
    }


def pvc(namespace="golden", name="fedora"):
    return {"source": {"pvc": {"namespace": namespace, "name": name}}}


SNAPSHOT = {"source": {"snapshot": {"namespace": "golden", "name": "fedora"}}}


async def ask(document, *rights, request=None, labels=None, **options):
    access = Access(*(("golden", right) for right in rights), **options)
    review = read(body(document, **(request or {})), HOOK)
    return await authorise(review, access, labels), access, review


def token(verdict):
    patched = {one["path"]: one["value"] for one in verdict.patch}
    return patched["/metadata/annotations"]["cdi.kubevirt.io/storage.clone.token"]


@pytest.mark.parametrize(
    ("source", "rights", "allowed"),
    [
        (pvc(), [OWN], True),
        (pvc(), [PODS], True),
        (pvc(), [CLAIMS], False),
        (pvc(), [], False),
        (SNAPSHOT, [OWN], True),
        (SNAPSHOT, [PODS, CLAIMS], True),
        (SNAPSHOT, [PODS, PVCS], True),
        (SNAPSHOT, [CLAIMS, PVCS], False),
        (SNAPSHOT, [PVCS], False),
        (SNAPSHOT, [PODS], False),
        (SNAPSHOT, [CLAIMS], False),
        (SNAPSHOT, [], False),
    ],
)
async def test_each_right(source, rights, allowed):
    verdict, access, review = await ask(clone(source), *rights)
    assert isinstance(verdict, Allowed if allowed else Refused)
    assert {user for user, _ in access.asked} == {review.user}
    if isinstance(verdict, Refused):
        assert verdict.status == 403
        text = answer(review, verdict)["response"]["status"]["message"]
        assert f"User {review.user} has insufficient permissions in clone source namespace golden" in text


async def test_no_right_is_asked_about_twice():
    _, access, _ = await ask(clone(SNAPSHOT))
    assert [attributes["resource"] for _, attributes in access.asked] == ["datavolumes", "pods"]
    _, access, _ = await ask(clone(SNAPSHOT), PODS)
    assert [attributes["resource"] for _, attributes in access.asked] == [
        "datavolumes", "pods", "persistentvolumeclaims", "pvcs",
    ]  # fmt: skip


async def test_the_token_says_what_was_allowed_and_nothing_else():
    verdict, _, _ = await ask(clone(pvc()), OWN)
    claims = KEY.verify(token(verdict), Operation.CLONE, NOW)
    assert (claims.namespace, claims.name, claims.resource.resource) == ("golden", "fedora", "persistentvolumeclaims")
    assert claims.params == {"targetNamespace": "default", "targetName": "mine"}


async def test_within_a_namespace_nobody_is_asked():
    verdict, access, _ = await ask(clone(pvc("default")))
    assert verdict == Allowed()
    assert not access.asked


async def test_other_annotations_stay():
    verdict, _, _ = await ask(clone(pvc(), annotations={"a": "b"}), OWN)
    patched = {one["path"]: one["value"] for one in verdict.patch}
    assert patched["/metadata/annotations"]["a"] == "b"


async def test_a_name_that_is_yet_to_be_made_is_made():
    document = clone(pvc(), generateName="vm-")
    del document["metadata"]["name"]
    data = json.loads(body(document))
    data["request"].pop("name", None)
    access = Access(("golden", OWN))
    verdict = await authorise(read(json.dumps(data).encode(), HOOK), access)
    patched = {one["path"]: one["value"] for one in verdict.patch}
    name = patched["/metadata/name"]
    assert name.startswith("vm-")
    assert len(name) == len("vm-") + 5
    assert KEY.verify(token(verdict), Operation.CLONE, NOW).params["targetName"] == name


def data_source(name, source, namespace="default"):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataSource",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"source": source},
    }


@pytest.mark.parametrize("named", ["direct", "through"])
async def test_a_data_source_is_followed(named):
    sources = [
        data_source("direct", {"pvc": {"namespace": "golden", "name": "fedora"}}),
        data_source("through", {"dataSource": {"namespace": "default", "name": "direct"}}),
    ]
    document = clone({"sourceRef": {"kind": "DataSource", "name": named}})
    refused, _, _ = await ask(document, data_sources=sources)
    assert isinstance(refused, Refused)
    allowed, _, _ = await ask(document, OWN, data_sources=sources)
    assert KEY.verify(token(allowed), Operation.CLONE, NOW).name == "fedora"


@pytest.mark.parametrize("named", ["direct", "through"])
async def test_an_empty_namespace_in_a_data_source_is_its_own_and_not_that_of_the_datavolume(named):
    sources = [
        data_source("direct", {"pvc": {"namespace": "", "name": "fedora"}}, "golden"),
        data_source("through", {"dataSource": {"namespace": "", "name": "direct"}}, "golden"),
    ]
    document = clone({"sourceRef": {"kind": "DataSource", "namespace": "golden", "name": named}})
    refused, _, _ = await ask(document, data_sources=sources)
    assert isinstance(refused, Refused)
    allowed, _, _ = await ask(document, OWN, data_sources=sources)
    claims = KEY.verify(token(allowed), Operation.CLONE, NOW)
    assert (claims.namespace, claims.name) == ("golden", "fedora")


async def test_groups_and_extra_of_the_user_are_passed_on():
    data = json.loads(body(clone(pvc())))
    data["request"]["userInfo"] = {"username": "u", "groups": ["g"], "uid": "7", "extra": {"scopes": ["a", "b"]}}
    review = read(json.dumps(data).encode(), HOOK)
    assert (review.by.groups, review.by.uid, review.by.extra) == (("g",), "7", {"scopes": ("a", "b")})


async def test_the_patch_is_one_that_an_api_server_takes():
    verdict, _, review = await ask(clone(pvc()), OWN)
    response = answer(review, verdict)["response"]
    assert response["patchType"] == "JSONPatch"
    assert json.loads(base64.b64decode(response["patch"]))[0]["op"] == "add"


# --- foreign tokens

ANNOTATION = "cdi.kubevirt.io/storage.clone.token"
STRIPPED = ({"op": "remove", "path": "/metadata/annotations/cdi.kubevirt.io~1storage.clone.token"},)
FORGED = {"annotations": {ANNOTATION: "another user's", "a": "b"}}
MISSING = {"sourceRef": {"kind": "DataSource", "name": "comes-later"}}


@pytest.mark.parametrize(
    "source",
    [pvc("default"), MISSING, {"source": {"blank": {}}}, {"source": {"http": {"url": "http://h/x"}}}],
    ids=["of its own namespace", "of nothing yet", "none", "another"],
)
async def test_a_token_that_is_brought_along_is_taken_away(source):
    """An object may become a cross-namespace clone after creation: a DataSource changes, a claim is annotated."""
    verdict, _, _ = await ask(clone(source, **FORGED))
    assert verdict == Allowed(patch=STRIPPED)
    assert (await ask(clone(source)))[0] == Allowed()


async def test_a_token_that_is_brought_along_is_replaced_where_there_is_leave_and_is_no_leave_itself():
    verdict, _, _ = await ask(clone(pvc(), **FORGED), OWN)
    assert KEY.verify(token(verdict), Operation.CLONE, NOW).name == "fedora"
    assert isinstance((await ask(clone(pvc(), **FORGED)))[0], Refused)


async def test_what_cannot_be_read_has_no_token_either():
    broken = clone(pvc(), **FORGED)
    broken["spec"] = []
    assert (await ask(broken))[0] == Allowed(patch=STRIPPED)
    assert (await ask({**clone(pvc()), "metadata": {"name": "a", "annotations": ["x"]}}))[0] == Allowed()


async def test_a_dry_run_is_told_whether_and_given_nothing():
    request = {"dryRun": True}
    assert (await ask(clone(pvc()), OWN, request=request))[0] == Allowed()
    assert (await ask(clone(pvc(), **FORGED), OWN, request=request))[0] == Allowed(patch=STRIPPED)
    assert isinstance((await ask(clone(pvc()), request=request))[0], Refused)


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        ({}, {ANNOTATION: "x"}, False),
        ({ANNOTATION: "x"}, {ANNOTATION: "y"}, False),
        ({ANNOTATION: "x"}, {ANNOTATION: "x", "a": "b"}, True),
        ({ANNOTATION: "x"}, {}, True),
        ({}, {"a": "b"}, True),
    ],
)
async def test_a_token_cannot_be_added_or_changed(old, new, allowed):
    """This holds even for users who may clone: the token belongs to the DataVolume of the original request."""
    request = {"operation": "UPDATE", "old": clone(MISSING, annotations=old)}
    verdict, access, review = await ask(clone(MISSING, annotations=new), OWN, request=request)
    assert not access.asked
    if allowed:
        assert verdict == Allowed()
    else:
        assert "cannot be added or changed" in answer(review, verdict)["response"]["status"]["message"]


@pytest.mark.parametrize(
    ("had", "kept"),
    [(None, False), ({}, False), ({"who": "them"}, False), ({"who": "us"}, True), ({"who": "us", "a": "b"}, True)],
)
async def test_whoever_is_given_our_labels_later_comes_without_a_token(had, kept):
    """Beside another CDI the webhook sees labelled objects only, so an unlabelled object was created unchecked."""
    was = clone(pvc(), **FORGED, **({"labels": had} if had is not None else {}))
    now = clone(pvc(), **FORGED, labels={"who": "us"})
    verdict, _, _ = await ask(now, OWN, request={"operation": "UPDATE", "old": was}, labels={"who": "us"})
    assert verdict == (Allowed() if kept else Allowed(patch=STRIPPED))


@pytest.mark.parametrize("source", [pvc(), SNAPSHOT, pvc(namespace="default")])
@pytest.mark.parametrize(
    ("annotations", "warning"),
    [
        ({"cdi.kubevirt.io/golden.revoked": "backdoor"}, '"fedora" was revoked (backdoor)'),
        ({"cdi.kubevirt.io/golden.deprecated": "2020-01-01T00:00:00Z"}, "is deprecated since 2020-01-01T00:00:00Z"),
        ({"cdi.kubevirt.io/golden.endOfLife": "2020-01-01T00:00:00Z"}, "end of life on 2020-01-01T00:00:00Z"),
    ],
)
async def test_a_clone_of_a_version_that_should_not_be_used_any_more_is_admitted_with_a_warning(
    source, annotations, warning
):
    verdict, _, review = await ask(clone(source), OWN, annotations=annotations)
    assert isinstance(verdict, Allowed)
    (text,) = answer(review, verdict)["response"]["warnings"]
    assert warning in text


@pytest.mark.parametrize("annotations", [None, {}, NotFound("gone"), ClusterUnavailable("down", remedy="wait")])
async def test_a_source_without_dates_or_that_cannot_be_read_gives_no_warning(annotations):
    verdict, _, _ = await ask(clone(pvc()), OWN, annotations=annotations)
    assert isinstance(verdict, Allowed)
    assert verdict.warnings == ()


async def test_whoever_may_not_clone_a_version_is_not_told_about_it():
    verdict, _, _ = await ask(clone(pvc()), annotations={"cdi.kubevirt.io/golden.revoked": "backdoor"})
    assert isinstance(verdict, Refused)
    assert verdict.warnings == ()
