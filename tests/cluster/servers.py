"""Image sources for pods: the servers of the integration tests, listening on the cluster's side of this machine."""

from __future__ import annotations

import base64
import contextlib
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from tests.fakes.gcs_json_api import GcsStandin
from tests.faults.server import FaultServer
from tests.integration.fixtures_http import Nginx, running_nginx
from tests.integration.fixtures_registry import (
    PASSWORD,
    USER,
    OciLayout,
    RegistryFrontEnd,
    bcrypt,
    free_port,
    running_registry,
)
from tests.integration.fixtures_s3 import ACCESS_KEY, SECRET_KEY, S3Server, fresh_bucket, running_s3

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """One server of each kind, and the objects that a cluster needs to read from them."""

    nginx: Nginx
    s3: S3Server
    gcs: GcsStandin
    registry: RegistryFrontEnd
    """Registry with TLS and a password."""
    tls: FaultServer
    """Server with TLS; its certificate authority is the registry's."""
    directory: Path
    push_to: str
    """Address of the same registry without TLS and password, for this machine only."""

    def inputs(self) -> tuple[Document, ...]:
        """Return Secrets ``s3`` and ``registry``, and the ConfigMap ``authority``."""
        return (
            secret("s3", accessKeyId=ACCESS_KEY, secretKey=SECRET_KEY),
            secret("registry", accessKeyId=USER, secretKey=PASSWORD),
            self.authority("authority"),
        )

    def authority(self, name: str) -> Document:
        """Return a ConfigMap with the certificate authority of `registry` and `tls`."""
        assert self.registry.ca_dir is not None
        pems = {file.name: file.read_text() for file in self.registry.ca_dir.iterdir()}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": pems}

    def push_disk(self, name: str, disk: bytes, *, env: list[str] | None = None) -> Document:
        """Push a containerDisk ``name:latest`` and return the DataVolume source for it."""
        layout = OciLayout(self.directory / f"layout-{name}")
        layout.image([layout.layer({"disk/": b"", "disk/disk.img": disk})], env=env, tag="latest")
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
        subprocess.run(
            [*command, f"oci:{layout.path}:latest", f"docker://{self.push_to}/{name}:latest"], check=True, timeout=60
        )
        return {
            "registry": {
                "url": self.registry.url(f"{name}:latest"),
                "secretRef": "registry",
                "certConfigMap": "authority",
            }
        }

    def put_s3(self, key: str, content: bytes) -> Document:
        self.s3.put(key, content)
        return {"s3": {"url": self.s3.url(key), "secretRef": "s3"}}

    def put_gcs(self, name: str, content: bytes) -> Document:
        self.gcs.put("images", name, content)
        return {"gcs": {"url": f"{self.gcs.origin}/images/{name}"}}


def secret(name: str, **texts: str) -> Document:
    data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


@contextlib.contextmanager
def serving(directory: Path, host: str) -> Iterator[Servers]:
    """Run all servers at `host`."""
    authority = trustme.CA()
    certificate = authority.issue_cert(host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    places = directory / "nginx", directory / "registry", directory / "ca"
    for place in places:
        place.mkdir()
    authority.cert_pem.write_to_path(str(places[2] / "authority.pem"))
    with contextlib.ExitStack() as stack:
        nginx = stack.enter_context(running_nginx(places[0], host))
        s3 = stack.enter_context(fresh_bucket(stack.enter_context(running_s3(host))))
        gcs = stack.enter_context(GcsStandin(host=host))
        tls = stack.enter_context(FaultServer(context, host=host))
        push_to, address = stack.enter_context(_registry(places[1], host, certificate))
        yield Servers(
            nginx=nginx,
            s3=s3,
            gcs=gcs,
            registry=RegistryFrontEnd(address, places[2]),
            tls=tls,
            directory=directory,
            push_to=push_to,
        )


@contextlib.contextmanager
def _registry(directory: Path, host: str, certificate: trustme.LeafCert) -> Iterator[tuple[str, str]]:
    """Run two front ends of one store; yield the addresses of the open one, on loopback, and of the protected one."""
    key, chain, htpasswd = directory / "key.pem", directory / "chain.pem", directory / "htpasswd"
    certificate.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    htpasswd.write_text(f"{USER}:{bcrypt(PASSWORD)}\n")
    common = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "store")}},
    }
    closed = {"auth": {"htpasswd": {"realm": "test", "path": str(htpasswd)}}}
    with contextlib.ExitStack() as stack:
        addresses = []
        for name, where, more in (("open", "127.0.0.1", {}), ("basic", host, closed)):
            port = free_port()
            http: Document = {"addr": f"{where}:{port}", "secret": "x"}
            if more:
                http["tls"] = {"certificate": str(chain), "key": str(key)}
            stack.enter_context(running_registry(directory, name, port, {**common, "http": http, **more}))
            addresses.append(f"{where}:{port}")
        yield addresses[0], addresses[1]
