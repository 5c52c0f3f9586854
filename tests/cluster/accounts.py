"""Users and programs with credentials of their own: a certificate signed by the API server, or a service account."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cluster.kubectl import Kubectl

_RBAC = "rbac.authorization.k8s.io"
_HOUR = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """A user or service account with a client."""

    kubectl: Kubectl
    name: str
    """Name by which the API server knows the account."""
    subject: dict[str, Any]
    """The account as a subject of a RoleBinding."""

    def within(self, namespace: str) -> Kubectl:
        return self.kubectl.within(namespace)


def person(admin: Kubectl, directory: Path, name: str, *groups: str) -> Asker:
    """Create a user, whose certificate is signed on request (`certificates.k8s.io`), as an administrator would."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
        ]
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    admin.create(
        {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": name},
            "spec": {
                "request": base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
                "signerName": "kubernetes.io/kube-apiserver-client",
                "usages": ["client auth"],
                "expirationSeconds": _HOUR,
            },
        }
    )
    try:
        admin.run("certificate", "approve", name)
        signed = admin.wait("csr", name, "signed", lambda it: "certificate" in it.get("status", {}))
    finally:
        admin.delete("csr", name, wait=False)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = {
        "client-certificate-data": signed["status"]["certificate"],
        "client-key-data": base64.b64encode(pem).decode(),
    }
    subject_of = {"apiGroup": _RBAC, "kind": "User", "name": name}
    return Asker(kubectl=_as(admin, directory / name, shown), name=name, subject=subject_of)


def account(admin: Kubectl, directory: Path, name: str) -> Asker:
    """Create a service account in the namespace of `admin`."""
    admin.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
    shown = {"token": admin.run("create", "token", name, "--duration=1h").strip()}
    subject = {"kind": "ServiceAccount", "namespace": admin.namespace, "name": name}
    known = f"system:serviceaccount:{admin.namespace}:{name}"
    return Asker(kubectl=_as(admin, directory / f"{admin.namespace}-{name}", shown), name=known, subject=subject)


def bind(admin: Kubectl, kind: str, role: str, subject: dict[str, Any]) -> None:
    """Bind a Role or ClusterRole (`kind`) in the namespace of `admin`."""
    admin.create(
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": {"generateName": "test-"},
            "roleRef": {"apiGroup": _RBAC, "kind": kind, "name": role},
            "subjects": [subject],
        }
    )


def _as(admin: Kubectl, path: Path, shown: dict[str, str]) -> Kubectl:
    """Return a client of the same cluster with these credentials."""
    config = json.loads(admin.run("config", "view", "--raw", "--minify", "--flatten", "--output=json"))
    for user in config["users"]:
        user["user"] = shown
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return Kubectl(program=admin.program, kubeconfig=path, environment=admin.environment, namespace=admin.namespace)
