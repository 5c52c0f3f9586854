"""The real cosign, built from its Go module, with keys of every kind and a registry that has the referrers API."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tests.cluster.build import keep_go_program
from tests.cluster.layout import SOURCES, Layout

Storage = Literal["tag", "referrers", "bundle"]
"""Where and how a signature is stored: under a tag, as a referrer, or as a referrer that is a bundle (the default)."""
_PLAIN_HTTP = ("--allow-insecure-registry", "--allow-http-registry")
_STORAGE: dict[Storage, tuple[str, ...]] = {
    "tag": ("--new-bundle-format=false",),
    "referrers": ("--new-bundle-format=false", "--registry-referrers-mode=oci-1-1"),
    "bundle": (),
}
_OPENSSL = {
    "p256": ("EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "p384": ("EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "ed25519": ("ED25519",),
    "rsa": ("RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
}


_BUILD_TIMEOUT = 1800
"""Seconds for a test that may have to build cosign first, which takes about ten minutes of processor time, once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cosign_program" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_BUILD_TIMEOUT))


@dataclass(frozen=True)
class Cosign:
    """The program with a home of its own, so that it finds no credentials and no trust root."""

    program: Path
    home: Path
    keys: dict[str, Path] = field(default_factory=dict)

    def run(self, *arguments: str | Path) -> None:
        subprocess.run(
            [self.program, *arguments],
            cwd=self.home,
            env={"PATH": os.defpath, "HOME": str(self.home), "COSIGN_PASSWORD": "x", "COSIGN_EXPERIMENTAL": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=100,
        )

    def key(self, name: str, kind: str = "p256") -> Path:
        """Return the path of a public key, whose private key signs as `name`."""
        if name not in self.keys:
            pem = self.home / f"{name}.pem"
            subprocess.run(
                ["openssl", "genpkey", "-algorithm", *_OPENSSL[kind], "-out", pem], check=True, capture_output=True
            )
            self.run("import-key-pair", "--key", pem, "--output-key-prefix", self.home / name, "--yes")
            self.keys[name] = self.home / f"{name}.pub"
        return self.keys[name]

    def sign(self, url: str, digest: str, name: str = "release", storage: Storage = "tag") -> None:
        """Sign the image at ``docker://host/repository`` with this digest."""
        self.key(name)
        image = f"{url.removeprefix('docker://')}@{digest}"
        options = ("--tlog-upload=false", "--use-signing-config=false", *_STORAGE[storage], *_PLAIN_HTTP, "--yes")
        self.run("sign", "--key", self.home / f"{name}.key", *options, image)

    def save(self, url: str, digest: str, directory: Path) -> None:
        """Write the image with its signatures as an OCI layout."""
        self.run("save", "--dir", directory, *_PLAIN_HTTP, f"{url.removeprefix('docker://')}@{digest}")


@pytest.fixture(scope="session")
def cosign_program() -> Path:
    return keep_go_program(Layout.default(), SOURCES / "cosign")


@pytest.fixture(scope="session")
def cosign(cosign_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Cosign:
    return Cosign(cosign_program, tmp_path_factory.mktemp("cosign"))


@pytest.fixture(scope="session")
def referrers_registry(cosign_program: Path) -> Iterator[str]:
    """Run a registry with the referrers API and return its ``host:port``; it is empty, and open to everybody."""
    with subprocess.Popen(
        [cosign_program, "registry"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()
