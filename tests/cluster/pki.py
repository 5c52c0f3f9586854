"""Certificates and kubeconfigs of the test cluster."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.cluster.layout import API_PORT, API_SERVICE_ADDRESS, HOST_ADDRESS, NODE, NODE_ADDRESS

_VALID = dt.timedelta(days=365)
_CLOCKS_DIFFER_BY = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return _key_pem(self.key)

    def write(self, directory: Path, name: str) -> None:
        """Write NAME.crt, and NAME.key readable only by its owner."""
        write_private(directory / f"{name}.crt", self.certificate_pem)
        write_private(directory / f"{name}.key", self.key_pem)


def authority(name: str) -> Pair:
    """Create a self-signed certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = _usage(key_cert_sign=True, crl_sign=True, digital_signature=True)
    certificate = (
        _builder(subject, subject, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate=certificate, key=key)


def issue(issuer: Pair, name: str, *, group: str = "", names: tuple[str, ...] = ()) -> Pair:
    """Issue a certificate for a client, and for a server at the hosts and addresses in `names`.

    Args:
        issuer: The authority.
        name: The common name.
        group: The organization, which is a group for Kubernetes; none if empty.
        names: Subject alternative names.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if group:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    builder = (
        _builder(x509.Name(attributes), issuer.certificate.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
    )
    if names:
        alternatives = x509.SubjectAlternativeName([_alternative(each) for each in names])
        builder = builder.add_extension(alternatives, critical=False)
    return Pair(certificate=builder.sign(issuer.key, hashes.SHA256()), key=key)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER_BY)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def kubeconfig(ca: Pair, user: str, client: Pair) -> bytes:
    """Return a kubeconfig (JSON, which is YAML) with this client certificate, for the node's own address."""

    def embedded(content: bytes) -> str:
        return base64.b64encode(content).decode()

    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "cdi-test",
                "cluster": {
                    "server": f"https://{NODE_ADDRESS}:{API_PORT}",
                    "certificate-authority-data": embedded(ca.certificate_pem),
                },
            }
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": embedded(client.certificate_pem),
                    "client-key-data": embedded(client.key_pem),
                },
            }
        ],
        "contexts": [{"name": "cdi-test", "context": {"cluster": "cdi-test", "user": user}}],
        "current-context": "cdi-test",
    }
    return json.dumps(document, indent=1).encode()


def make(directory: Path, admin: Path) -> None:
    """Write certificates and kubeconfigs to `directory`, and the administrator's kubeconfig to `admin`."""
    directory.mkdir(parents=True, exist_ok=True)
    ca, front = authority("cdi-test"), authority("cdi-test-front-proxy")
    ca.write(directory, "ca")
    write_private(directory / "front-proxy-ca.crt", front.certificate_pem)
    issue(front, "front-proxy-client").write(directory, "front-proxy-client")
    service = "kubernetes.default.svc"
    issue(
        ca,
        "kube-apiserver",
        names=(
            "localhost", "kubernetes", "kubernetes.default", service, f"{service}.cluster.local",
            "127.0.0.1", HOST_ADDRESS, NODE_ADDRESS, API_SERVICE_ADDRESS,
        ),
    ).write(directory, "apiserver")  # fmt: skip
    issue(ca, "apiserver-kubelet-client", group="system:masters").write(directory, "apiserver-kubelet-client")
    hosts = (NODE, "localhost", NODE_ADDRESS, "127.0.0.1")
    kubelet = issue(ca, f"system:node:{NODE}", group="system:nodes", names=hosts)
    kubelet.write(directory, "kubelet")
    clients = {
        "kubelet": kubelet,
        "kube-controller-manager": issue(ca, "system:kube-controller-manager"),
        "kube-scheduler": issue(ca, "system:kube-scheduler"),
        "kube-proxy": issue(ca, "system:kube-proxy"),
        "admin": issue(ca, "admin", group="system:masters"),
    }
    for name, client in clients.items():
        write_private(directory / f"{name}.kubeconfig", kubeconfig(ca, name, client))
    write_private(admin, kubeconfig(ca, "admin", clients["admin"]))
    signer = ec.generate_private_key(ec.SECP256R1())
    write_private(directory / "service-accounts.key", _key_pem(signer))
    write_private(
        directory / "service-accounts.pub",
        signer.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )
