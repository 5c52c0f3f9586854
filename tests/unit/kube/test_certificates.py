"""Certificates and authorities in Secrets: created once, renewed in time, by several replicas, always trusted."""

import asyncio
import base64
import copy
import dataclasses
import datetime as dt

import pytest

from cdi.api.annotations import MANAGED_CERTIFICATE
from cdi.api.errors import AlreadyExists, Conflict, NotFound, UploadNotReady
from cdi.kube import pki
from cdi.kube.certificate_annotations import ANN_NOT_AFTER, ANN_NOT_BEFORE
from cdi.kube.certificates import (
    PROPAGATED,
    SETTLED,
    CertificateConfig,
    SignerConfig,
    ensure_authority,
    ensure_certificate,
    service_hosts,
)
from cdi.kube.pki import AUTHORITY_LIFETIME, CERTIFICATE_LIFETIME, Lifetime

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
SIGNER = SignerConfig.named("cdi", "cdi-apiserver-signer")
PLACE = CertificateConfig(
    namespace="cdi", secret="cdi-apiserver-server-cert", name="cdi-api.cdi.svc", hosts=service_hosts("cdi-api", "cdi")
)


class Api:
    """API server semantics for concurrent writers: resource versions, and exclusive creation."""

    def __init__(self):
        self.objects = {}
        self.writes = []
        self.version = 0

    async def get(self, resource, namespace, name):
        await asyncio.sleep(0)
        if (resource.plural, name) not in self.objects:
            raise NotFound(name)
        return copy.deepcopy(self.objects[resource.plural, name])

    async def create(self, resource, body):
        await asyncio.sleep(0)
        name = body["metadata"]["name"]
        if (resource.plural, name) in self.objects:
            raise AlreadyExists(name)
        self._store(resource, name, body)

    async def update(self, resource, body):
        await asyncio.sleep(0)
        name = body["metadata"]["name"]
        now = self.objects.get((resource.plural, name))
        if now is None:
            raise NotFound(name)
        if now["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise Conflict(name)
        self._store(resource, name, body)

    def _store(self, resource, name, body):
        self.version += 1
        stored = copy.deepcopy(body)
        stored["metadata"] |= {"resourceVersion": str(self.version), "uid": f"uid-{name}"}
        self.objects[resource.plural, name] = stored
        self.writes.append(name)


async def look(api, now, *, authority=AUTHORITY_LIFETIME, certificate=CERTIFICATE_LIFETIME):
    made = await ensure_authority(api, SIGNER, authority, now)
    held = await ensure_certificate(api, PLACE, made, certificate, now)
    return made, held


def secret(pair, *, managed=False, **more):
    data = {"tls.crt": pair.certificate, "tls.key": pair.key} | more
    return {
        "metadata": {"name": PLACE.secret, "namespace": "cdi", "uid": "u", "resourceVersion": "0",
                     "annotations": MANAGED_CERTIFICATE.write() if managed else {}},
        "type": "kubernetes.io/tls",
        "data": {name: base64.b64encode(text).decode() for name, text in data.items()},
    }  # fmt: skip


async def test_what_is_not_there_is_made_and_then_kept():
    api = Api()
    made, held = await look(api, NOW)
    assert api.writes == ["cdi-apiserver-signer", "cdi-apiserver-signer-bundle", "cdi-apiserver-server-cert"]
    assert pki.issued_by(held.pair.parsed(), made.trusted)
    assert pki.names_all(held.pair.parsed(), PLACE.hosts)
    idempotent = await look(api, NOW + HOUR)
    assert idempotent[1] == held
    assert len(api.writes) == 3


async def test_replicas_that_start_at_once_agree():
    api = Api()
    results = await asyncio.gather(*(look(api, NOW) for _ in range(5)))
    assert len({made.pair.certificate for made, _ in results}) == 1
    assert len({held.pair.certificate for _, held in results}) == 1
    assert sorted(api.writes) == ["cdi-apiserver-server-cert", "cdi-apiserver-signer", "cdi-apiserver-signer-bundle"]


async def test_a_week_of_looks_never_shows_what_is_not_trusted_by_then():
    """Check at each step that the bundle contained the signer of the served certificate for long enough."""
    api = Api()
    seen, shown, authorities, now = {}, set(), set(), NOW
    while now < NOW + 7 * 24 * HOUR:
        made, held = await look(api, now)
        for one in made.trusted:
            seen.setdefault(one.serial_number, now)
        leaf = held.pair.parsed()
        assert pki.is_valid(leaf, now)
        issuer = next(one for one in made.trusted if pki.issued_by(leaf, [one]))
        assert seen[issuer.serial_number] == NOW or now - seen[issuer.serial_number] >= SETTLED
        shown.add(leaf.serial_number)
        authorities.add(made.certificate.serial_number)
        assert len(made.trusted) <= 3
        now += dt.timedelta(minutes=7)
    assert len(authorities) in (7, 8)
    assert len(shown) in (14, 15)


async def test_the_one_before_stays_trusted_until_its_end():
    api = Api()
    first, _ = await look(api, NOW)
    second, _ = await look(api, NOW + 25 * HOUR)
    assert second.certificate != first.certificate
    assert first.certificate in second.trusted
    third, _ = await look(api, NOW + 48 * HOUR + dt.timedelta(minutes=1))
    assert first.certificate not in third.trusted


@pytest.mark.parametrize("damage", [{"tls.key": ""}, {"tls.crt": "eA=="}, {"tls.crt": "!"}, {}])
async def test_a_secret_that_was_damaged_is_mended(damage):
    api = Api()
    await look(api, NOW)
    for name in ("cdi-apiserver-signer", "cdi-apiserver-server-cert"):
        stored = api.objects["secrets", name]
        stored["data"] = stored["data"] | damage if damage else None
    made, held = await look(api, NOW + HOUR)
    assert pki.issued_by(held.pair.parsed(), [made.certificate])


async def test_another_host_needs_another_certificate():
    api = Api()
    made, held = await look(api, NOW)
    other = CertificateConfig(namespace="cdi", secret=PLACE.secret, name=PLACE.name, hosts=(*PLACE.hosts, "10.0.0.1"))
    idempotent = await ensure_certificate(api, other, made, CERTIFICATE_LIFETIME, NOW)
    assert idempotent.pair != held.pair
    assert pki.names_all(idempotent.pair.parsed(), other.hosts)


async def test_somebody_elses_certificate_is_used_while_it_is_good():
    api = Api()
    company = pki.new_authority("company", AUTHORITY_LIFETIME, NOW)
    theirs = pki.new_certificate(company, "cdi-api", hosts=("cdi-api",), lifetime=CERTIFICATE_LIFETIME, now=NOW)
    api.objects["secrets", PLACE.secret] = secret(theirs, **{"ca.crt": company.certificate})
    _, held = await look(api, NOW + 23 * HOUR)
    assert held.pair == theirs
    assert held.authorities == company.certificate.decode()
    _, held = await look(api, NOW + 24 * HOUR)
    assert held.pair != theirs
    assert held.authorities == ""
    assert api.objects["secrets", PLACE.secret]["metadata"]["annotations"][MANAGED_CERTIFICATE.key] == "true"


async def test_the_type_of_a_secret_stays_for_it_cannot_be_changed():
    api = Api()
    api.objects["secrets", PLACE.secret] = secret(pki.Pair(certificate=b"x", key=b"y")) | {"type": "Opaque"}
    await look(api, NOW)
    assert api.objects["secrets", PLACE.secret]["type"] == "Opaque"


async def test_an_endless_race_ends():
    class Racing(Api):
        async def create(self, resource, body):
            raise AlreadyExists("others were quicker")

    with pytest.raises(AlreadyExists):
        await ensure_authority(Racing(), SIGNER, AUTHORITY_LIFETIME, NOW)


async def test_a_certificate_is_not_made_anew_where_that_gains_nothing():
    """Let the authority end before the certificate's renewal time, while it is not due for renewal itself."""
    api = Api()
    short = pki.Lifetime(duration=24 * HOUR, renew_before=HOUR)
    await look(api, NOW, authority=short)
    await look(api, NOW + 20 * HOUR, authority=short)
    writes = len(api.writes)
    await look(api, NOW + 21 * HOUR, authority=short)
    assert len(api.writes) == writes


# --- rotation that a client requests ---------------------------------------------------------------------------------


def annotate(api, name, changes):
    """Merge annotations of a Secret as ``kubectl annotate`` does; None removes one."""
    found = api.objects["secrets", name]["metadata"]["annotations"]
    found |= changes
    for key in [key for key, value in found.items() if value is None]:
        del found[key]


async def test_the_validity_of_a_certificate_is_annotated():
    api = Api()
    made, held = await look(api, NOW)
    for name, certificate in ((SIGNER.secret, made.certificate), (PLACE.secret, held.pair.parsed())):
        annotations = api.objects["secrets", name]["metadata"]["annotations"]
        assert dt.datetime.fromisoformat(annotations[ANN_NOT_BEFORE]) == certificate.not_valid_before_utc
        assert dt.datetime.fromisoformat(annotations[ANN_NOT_AFTER]) == certificate.not_valid_after_utc
        assert annotations[ANN_NOT_AFTER].endswith("Z")


REQUESTS = {
    "an end in the past": {ANN_NOT_AFTER: "2025-12-31T23:55:01Z"},
    "an end within the renewal time": {ANN_NOT_AFTER: "2026-01-01T02:00:00Z"},
    "a start long ago": {ANN_NOT_BEFORE: "0001-01-01T00:00:00Z"},
    "no end": {ANN_NOT_AFTER: None},
    "no start": {ANN_NOT_BEFORE: None},
    "an unreadable end": {ANN_NOT_AFTER: "soon"},
    "an end without a zone": {ANN_NOT_AFTER: "2026-01-03T00:00:00"},
}


@pytest.mark.parametrize("changes", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("name", [SIGNER.secret, PLACE.secret])
async def test_an_edited_annotation_rotates_the_certificate_once(name, changes):
    api = Api()
    before = await look(api, NOW)
    annotate(api, name, changes)
    after = await look(api, NOW + HOUR)
    is_signer = name == SIGNER.secret
    assert (after[0].certificate != before[0].certificate) is is_signer
    assert (after[1].pair != before[1].pair) is not is_signer
    assert before[0].certificate in after[0].trusted
    annotations = api.objects["secrets", name]["metadata"]["annotations"]
    made = after[0].certificate if is_signer else after[1].pair.parsed()
    assert dt.datetime.fromisoformat(annotations[ANN_NOT_AFTER]) == made.not_valid_after_utc
    writes = len(api.writes)
    assert await look(api, NOW + HOUR) == after
    assert len(api.writes) == writes


async def test_a_later_end_does_not_keep_a_certificate_longer_and_rotates_nothing():
    api = Api()
    _, before = await look(api, NOW)
    annotate(api, PLACE.secret, {ANN_NOT_AFTER: "9999-12-31T23:59:59Z"})
    assert (await look(api, NOW + HOUR))[1] == before
    assert (await look(api, NOW + 13 * HOUR))[1].pair != before.pair


async def test_a_certificate_of_another_tool_is_not_rotated():
    api = Api()
    company = pki.new_authority("company", AUTHORITY_LIFETIME, NOW)
    theirs = pki.new_certificate(company, "cdi-api", hosts=("cdi-api",), lifetime=CERTIFICATE_LIFETIME, now=NOW)
    api.objects["secrets", PLACE.secret] = secret(theirs)
    annotate(api, PLACE.secret, {ANN_NOT_AFTER: "2025-12-31T23:55:01Z"})
    assert (await look(api, NOW + HOUR))[1].pair == theirs


async def test_two_requests_within_minutes_do_not_drop_the_authority_that_peers_trust():
    api = Api()
    place = dataclasses.replace(PLACE, is_propagated=PROPAGATED)
    first = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, NOW)
    for minute in (0, 1):
        now = NOW + HOUR + dt.timedelta(minutes=minute)
        annotate(api, SIGNER.secret, {ANN_NOT_AFTER: None})
        authority = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, now)
    held = await ensure_certificate(api, place, authority, CERTIFICATE_LIFETIME, now)
    assert pki.issued_by(held.pair.parsed(), [first.certificate])
    assert len(authority.trusted) == 3


async def test_a_requested_rotation_waits_for_an_authority_that_peers_trust():
    api = Api()
    place = dataclasses.replace(PLACE, is_propagated=PROPAGATED, patience=PROPAGATED)
    authority = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, NOW)
    before = await ensure_certificate(api, place, authority, CERTIFICATE_LIFETIME, NOW)
    del api.objects["secrets", SIGNER.secret]
    annotate(api, PLACE.secret, {ANN_NOT_AFTER: None})
    authority = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, NOW + HOUR)
    assert await ensure_certificate(api, place, authority, CERTIFICATE_LIFETIME, NOW + HOUR) == before
    after = await ensure_certificate(api, place, authority, CERTIFICATE_LIFETIME, NOW + HOUR + PROPAGATED)
    assert after.pair != before.pair


# --- certificates with related objects ------------------------------------------------------------------------------

BESIDE = CertificateConfig(
    namespace="ns", secret="cdi-upload-a", name="cdi-upload-a.ns.svc", hosts=("cdi-upload-a.ns.svc",),
    trusts="who may ask", owner={"kind": "Service", "name": "cdi-upload-a", "uid": "u"}, exclusive=True,
)  # fmt: skip


async def test_whom_a_holder_is_to_believe_is_kept_beside_its_certificate_and_brought_up_to_date():
    api = Api()
    authority = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, NOW)
    first = await ensure_certificate(api, BESIDE, authority, CERTIFICATE_LIFETIME, NOW)
    later = dataclasses.replace(BESIDE, trusts="another CA")
    second = await ensure_certificate(api, later, authority, CERTIFICATE_LIFETIME, NOW + HOUR)
    stored = api.objects["secrets", "cdi-upload-a"]
    assert second.pair == first.pair
    assert not first.authorities and not second.authorities
    assert base64.b64decode(stored["data"]["ca.crt"]) == b"another CA"
    assert base64.b64decode(stored["data"]["tls.key"]) == first.pair.key
    assert stored["metadata"]["ownerReferences"] == [BESIDE.owner]


async def test_somebody_else_s_secret_is_not_written_over_where_it_is_of_no_use():
    api = Api()
    authority = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, NOW)
    body = {"metadata": {"name": "cdi-upload-a", "namespace": "ns"}, "data": {"tls.crt": "", "tls.key": ""}}
    await api.create(type("R", (), {"plural": "secrets"}), body)
    with pytest.raises(AlreadyExists, match="ns/cdi-upload-a"):
        await ensure_certificate(api, BESIDE, authority, CERTIFICATE_LIFETIME, NOW)
    assert api.objects["secrets", "cdi-upload-a"]["data"] == {"tls.crt": "", "tls.key": ""}


async def test_a_certificate_waits_until_all_who_see_it_have_heard_of_its_authority():
    api = Api()
    slow = dataclasses.replace(PLACE, is_propagated=dt.timedelta(minutes=10))
    usual = Lifetime(duration=4 * HOUR, renew_before=2 * HOUR)
    authority = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, NOW)
    first = await ensure_certificate(api, slow, authority, usual, NOW)
    # The authority was deleted exactly when the certificate is due.
    del api.objects["secrets", SIGNER.secret]
    due = NOW + 2 * HOUR
    other = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, due)
    minutes = [
        (await ensure_certificate(api, slow, other, usual, due + dt.timedelta(minutes=minute))).pair == first.pair
        for minute in (0, 2, 9.9, 10)
    ]
    assert minutes == [True, True, True, False]


# --- clients that mount the bundle read changes late ----------------------------------------------------------------

LATE = dt.timedelta(minutes=10)


@pytest.mark.parametrize(
    "lifetime",
    [
        AUTHORITY_LIFETIME,
        Lifetime(duration=24 * HOUR, renew_before=HOUR),
        Lifetime(duration=HOUR, renew_before=HOUR / 2),
    ],
)
async def test_what_is_new_at_any_moment_is_believed_by_who_read_the_bundle_ten_minutes_ago(lifetime):
    api, bundles, signers = Api(), [], set()
    for minute in range(0, 3 * int(lifetime.duration.total_seconds() // 60), 3):
        now = NOW + dt.timedelta(minutes=minute)
        authority = await ensure_authority(api, SIGNER, lifetime, now)
        bundles.append((now, authority.trusted))
        place = dataclasses.replace(BESIDE, secret=f"cdi-upload-{minute}", is_propagated=LATE)
        held = await ensure_certificate(api, place, authority, CERTIFICATE_LIFETIME, now)
        read = [trusted for when, trusted in bundles if when <= now - LATE] or [bundles[0][1]]
        leaf = held.pair.parsed()
        assert pki.issued_by(leaf, read[-1])
        assert leaf.not_valid_after_utc > now + lifetime.renew_before / 3
        signers.add(leaf.issuer.rfc4514_string())
    assert len(signers) > 2


async def test_a_certificate_that_is_shown_for_days_is_good_at_every_moment():
    """Include certificates that are due while the authority is new."""
    api, short = Api(), Lifetime(duration=dt.timedelta(minutes=12), renew_before=dt.timedelta(minutes=6))
    place, issuers = dataclasses.replace(PLACE, is_propagated=LATE), set()
    for minute in range(5 * 60):
        now = NOW + dt.timedelta(minutes=minute)
        authority = await ensure_authority(api, SIGNER, Lifetime(duration=2 * HOUR, renew_before=HOUR), now)
        leaf = (await ensure_certificate(api, place, authority, short, now)).pair.parsed()
        assert leaf.not_valid_after_utc > now + dt.timedelta(minutes=4)
        issuers.add(leaf.issuer.rfc4514_string())
    assert len(issuers) > 3


async def test_the_authority_before_is_still_believed_where_the_bundle_was_lost():
    api = Api()
    first, _ = await look(api, NOW)
    await look(api, NOW + 25 * HOUR)
    del api.objects["configmaps", SIGNER.bundle]
    second, _ = await look(api, NOW + 26 * HOUR)
    assert {one.serial_number for one in second.trusted} == {
        first.certificate.serial_number,
        second.certificate.serial_number,
    }


async def test_where_an_authority_is_lost_a_new_certificate_waits_until_its_successor_is_known():
    api = Api()
    patient = dataclasses.replace(BESIDE, is_propagated=LATE, patience=dt.timedelta(minutes=2))
    # The first authority needs no propagation: no client has read a bundle without it.
    authority = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, NOW)
    shown = await ensure_certificate(api, patient, authority, CERTIFICATE_LIFETIME, NOW)
    del api.objects["secrets", SIGNER.secret]
    lost = NOW + HOUR
    authority = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, lost)
    new = dataclasses.replace(patient, secret="cdi-upload-b")
    with pytest.raises(UploadNotReady, match="has not reached all clients"):
        await ensure_certificate(api, new, authority, CERTIFICATE_LIFETIME, lost + dt.timedelta(seconds=119))
    assert await ensure_certificate(api, patient, authority, CERTIFICATE_LIFETIME, lost) == shown
    held = await ensure_certificate(api, new, authority, CERTIFICATE_LIFETIME, lost + dt.timedelta(minutes=2))
    assert pki.issued_by(held.pair.parsed(), [authority.certificate])


def entries(api):
    body = api.objects["secrets", PLACE.secret]
    return {name.removesuffix(".crt") for name in body["data"] if name.endswith(".crt")} - {"ca"}


def of_entry(key_prefix, *beside, **more):
    return dataclasses.replace(
        PLACE, key_prefix=key_prefix, beside=beside, name=f"clone.{key_prefix}", hosts=(), usage="client", **more
    )


async def test_several_in_one_secret_do_not_disturb_each_other():
    api = Api()
    made = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, NOW)
    names = [f"t{number}" for number in range(4)]
    held = await asyncio.gather(
        *(
            ensure_certificate(api, of_entry(name, trusts=made.bundle), made, CERTIFICATE_LIFETIME, NOW)
            for name in names
        )
    )
    body = api.objects["secrets", PLACE.secret]
    assert entries(api) == set(names)
    assert base64.b64decode(body["data"]["ca.crt"]).decode() == made.bundle
    for name, one in zip(names, held, strict=True):
        assert base64.b64decode(body["data"][f"{name}.crt"]) == one.pair.certificate
        assert base64.b64decode(body["data"][f"{name}.key"]) == one.pair.key
        assert f"clone.{name}" in one.pair.parsed().subject.rfc4514_string()
    writes = len(api.writes)
    for name in names:
        await ensure_certificate(api, of_entry(name, trusts=made.bundle), made, CERTIFICATE_LIFETIME, NOW)
    assert len(api.writes) == writes


async def test_of_several_those_go_that_nobody_needs_any_more():
    api = Api()
    made = await ensure_authority(api, SIGNER, AUTHORITY_LIFETIME, NOW)
    for name in ("needed", "done"):
        await ensure_certificate(api, of_entry(name), made, CERTIFICATE_LIFETIME, NOW)
    await ensure_certificate(api, of_entry("soon"), made, CERTIFICATE_LIFETIME, NOW + HOUR / 2)
    assert entries(api) == {"needed", "done", "soon"}
    await ensure_certificate(api, of_entry("late", "needed"), made, CERTIFICATE_LIFETIME, NOW + HOUR)
    assert entries(api) == {"needed", "soon", "late"}
