"""Certificates as values, with a given clock."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from cdi.kube import pki
from cdi.kube.pki import AUTHORITY_LIFETIME, CERTIFICATE_LIFETIME, Lifetime, Pair

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
HOSTS = ("cdi-api.cdi.svc", "198.18.0.1", "::1")


@pytest.fixture(scope="module")
def authority():
    return pki.new_authority("signer", AUTHORITY_LIFETIME, NOW)


@pytest.fixture(scope="module")
def certificate(authority):
    return pki.new_certificate(authority, "cdi-api.cdi.svc", hosts=HOSTS, lifetime=CERTIFICATE_LIFETIME, now=NOW)


def test_the_usual_lifetimes_are_those_that_are_promised():
    assert (AUTHORITY_LIFETIME.duration, AUTHORITY_LIFETIME.renew_before) == (48 * HOUR, 24 * HOUR)
    assert (CERTIFICATE_LIFETIME.duration, CERTIFICATE_LIFETIME.renew_before) == (24 * HOUR, 12 * HOUR)


def test_an_authority_signs_and_nothing_else_does(authority, certificate):
    root, leaf = pki.as_ca(authority), certificate.parsed()
    assert root is not None
    assert pki.as_ca(certificate) is None
    assert pki.issued_by(leaf, [root])
    assert not pki.issued_by(leaf, [pki.as_ca(pki.new_authority("signer", AUTHORITY_LIFETIME, NOW))])
    assert not pki.issued_by(leaf, [])


def test_a_certificate_names_its_hosts(certificate):
    leaf = certificate.parsed()
    assert pki.names_all(leaf, HOSTS)
    assert pki.names_all(leaf, HOSTS[:1])
    assert not pki.names_all(leaf, (*HOSTS, "other"))


def test_purposes_differ(authority, certificate):
    def purposes(pair):
        return list(pair.parsed().extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)

    client = pki.new_certificate(authority, "client.example", usage="client", lifetime=CERTIFICATE_LIFETIME, now=NOW)
    assert purposes(certificate) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    assert purposes(client) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert pki.names_all(client.parsed(), ())


@pytest.mark.parametrize(
    ("hours", "good", "due"),
    [
        (-1, False, False),
        (0, True, False),
        (11.9, True, False),
        (12, True, True),
        (23.9, True, True),
        (24, False, True),
    ],
)
def test_when_a_certificate_is_good_and_when_it_is_time_for_another(certificate, hours, good, due):
    leaf, now = certificate.parsed(), NOW + hours * HOUR
    assert (pki.is_valid(leaf, now), pki.needs_renewal(leaf, CERTIFICATE_LIFETIME, now)) == (good, due)


def test_a_shorter_lifetime_is_followed_at_once(certificate):
    wanted = Lifetime(duration=4 * HOUR, renew_before=HOUR)
    assert not pki.needs_renewal(certificate.parsed(), wanted, NOW + 2.9 * HOUR)
    assert pki.needs_renewal(certificate.parsed(), wanted, NOW + 3 * HOUR)


def test_clocks_may_differ_a_little(certificate):
    assert pki.is_valid(certificate.parsed(), NOW - dt.timedelta(minutes=4))


def test_a_certificate_does_not_outlive_its_authority(authority):
    late = pki.new_certificate(authority, "x", hosts=("x",), lifetime=CERTIFICATE_LIFETIME, now=NOW + 40 * HOUR)
    assert late.parsed().not_valid_after_utc == NOW + 48 * HOUR


@pytest.mark.parametrize("broken", [Pair(certificate=b"", key=b""), Pair(certificate=b"x", key=b"y")])
def test_what_is_no_pair(broken):
    assert broken.parsed() is None


def test_a_key_of_another_certificate_is_no_pair(authority, certificate):
    assert Pair(certificate=certificate.certificate, key=authority.key).parsed() is None


def test_a_bundle_holds_what_is_still_good_once_newest_first(authority):
    later = pki.new_authority("signer", AUTHORITY_LIFETIME, NOW + 30 * HOUR)
    one, two = pki.as_ca(authority), pki.as_ca(later)
    text = pki.write_bundle([one, two, one], NOW + 30 * HOUR)
    assert pki.read_bundle(text) == [two, one]
    assert pki.read_bundle(pki.write_bundle(pki.read_bundle(text), NOW + 49 * HOUR)) == [two]


@pytest.mark.parametrize("text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"])
def test_a_bundle_that_cannot_be_read_is_empty(text):
    assert pki.read_bundle(text) == []


def foreign(key, algorithm):
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "foreign")])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(NOW).not_valid_after(NOW + 48 * HOUR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, algorithm)
    )  # fmt: skip
    return Pair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def test_an_authority_of_an_earlier_installation_can_go_on():
    earlier = foreign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    leaf = pki.new_certificate(earlier, "x", hosts=("x",), lifetime=CERTIFICATE_LIFETIME, now=NOW)
    assert pki.issued_by(leaf.parsed(), [pki.as_ca(earlier)])


def test_an_authority_whose_key_is_of_another_kind_is_none():
    assert pki.as_ca(foreign(ed25519.Ed25519PrivateKey.generate(), None)) is None
    assert pki.as_ca(foreign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256())) is not None
