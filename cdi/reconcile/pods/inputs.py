"""Secrets and ConfigMaps that a worker reads as files."""

from __future__ import annotations

from collections.abc import Iterable

from cdi.api.errors import ClusterForbidden, InvalidManifest, SourceCredentialsInvalid
from cdi.api.job import Credentials, RegistrySourceSpec, SourceSpec, Tls
from cdi.api.phases import Reason
from cdi.api.policy import COSIGN_KEYS as COSIGN_KEYS_ANNOTATION
from cdi.api.policy import PolicyAnnotations
from cdi.reconcile.actions import Mount, ObjectRef
from cdi.reconcile.context import InputLister
from cdi.reconcile.types import Pending

ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "accessKeyId", "secretKey", "sessionToken"
SERVICE_ACCOUNT, DOCKER_CONFIG = "credentials.json", ".dockerconfigjson"
KEYRING, COSIGN_KEYS = "keyring", "cosign-keys"


class InputMissing(Exception):
    """A Secret or ConfigMap is missing, or lacks a key."""

    def __init__(self, wait: Pending) -> None:
        super().__init__(wait.message)
        self.wait = wait


class Inputs:
    """The inputs of one worker: each method mounts an object and returns the paths of its files.

    Every method raises `InputMissing` if the object does not exist or lacks a key.
    """

    def __init__(
        self,
        objects: InputLister,
        namespace: str,
        directory: str,
        *,
        trusted_ca: ObjectRef | None,
        local_files: bool,
    ) -> None:
        """Start without mounts; each will be below `directory`."""
        self._objects = objects
        self._namespace = namespace
        self._directory = directory
        self._trusted_ca = trusted_ca
        self._local_files = local_files
        self.mounts: list[Mount] = []
        self.versions: list[str] = []
        """Version of each object, part of the worker's fingerprint."""

    def _mount(self, place: str, kind: str, name: str, *, needs: Iterable[str] = ()) -> tuple[str, frozenset[str]]:
        """Mount an object and return its directory and keys."""
        ref = ObjectRef(kind="Secret" if kind == "Secret" else "ConfigMap", namespace=self._namespace, name=name)
        keys = self._require(ref, needs)
        directory = f"{self._directory}/{place}"
        self.mounts.append(Mount(directory=directory, inputs=(ref,)))
        return directory, keys

    def _require(self, ref: ObjectRef, needs: Iterable[str] = ()) -> frozenset[str]:
        found = self._objects.input(ref)
        if found is None:
            raise InputMissing(
                Pending(
                    reason=Reason.NOT_FOUND,
                    message=f"{ref} does not exist. Try: create it; the import starts automatically",
                )
            )
        if found.refused:
            raise InputMissing(
                Pending(reason=ClusterForbidden.__name__, message=f"{ref} cannot be read: {found.refused}")
            )
        lacking = [key for key in needs if key not in found.keys]
        if lacking:
            error = SourceCredentialsInvalid(
                f"{ref} has no key {', '.join(lacking)}",
                where=f"its keys are {', '.join(sorted(found.keys)[:10]) or 'none'}",
                remedy="add it; the import starts automatically",
            )
            raise InputMissing(Pending(reason=error.code, message=error.message))
        self.versions.append(f"{ref}={found.version}")
        return found.keys

    def login(self, secret: str | None, *, docker: bool = False) -> Credentials:
        """Return the keys of a Secret, or with `docker` its pull secret; empty if none is named."""
        if not secret:
            return Credentials()
        found = self._objects.input(ObjectRef(kind="Secret", namespace=self._namespace, name=secret))
        if docker and found is not None and DOCKER_CONFIG in found.keys:
            directory, _ = self._mount("secret", "Secret", secret)
            return Credentials(docker_config_file=f"{directory}/{DOCKER_CONFIG}")
        directory, keys = self._mount("secret", "Secret", secret, needs=(ACCESS_KEY, SECRET_KEY))
        return Credentials(
            access_key_file=f"{directory}/{ACCESS_KEY}",
            secret_key_file=f"{directory}/{SECRET_KEY}",
            session_token_file=f"{directory}/{SESSION_TOKEN}" if SESSION_TOKEN in keys else None,
        )

    def service_account(self, secret: str | None) -> Credentials:
        """Return the service account of a Secret; empty if none is named."""
        if not secret:
            return Credentials()
        directory, _ = self._mount("secret", "Secret", secret, needs=(SERVICE_ACCOUNT,))
        return Credentials(service_account_file=f"{directory}/{SERVICE_ACCOUNT}")

    def tls(self, config_map: str | None, *, insecure: bool = False) -> Tls:
        """Return the settings of TLS with the CA bundle of a ConfigMap and the trusted one of CDIConfig."""
        refs = []
        if config_map:
            refs.append(ObjectRef(kind="ConfigMap", namespace=self._namespace, name=config_map))
        if self._trusted_ca is not None:
            refs.append(self._trusted_ca)
        if not refs:
            return Tls(insecure=insecure)
        for ref in refs:
            self._require(ref)
        directory = f"{self._directory}/certificates"
        self.mounts.append(Mount(directory=directory, inputs=tuple(refs)))
        return Tls(ca_dir=directory, insecure=insecure)

    def header_files(self, secrets: Iterable[str]) -> Iterable[str]:
        """Yield the paths of all files of Secrets with headers."""
        for number, secret in enumerate(secrets):
            directory, keys = self._mount(f"headers-{number}", "Secret", secret)
            yield from (f"{directory}/{key}" for key in sorted(keys))

    def keyring(self, policy_annotations: PolicyAnnotations) -> str | None:
        """Return the path of the key ring that an annotation names; None if none does."""
        if policy_annotations.keyring is None:
            return None
        if policy_annotations.keyring.startswith("/"):
            if not self._local_files:
                raise InvalidManifest(
                    "a key ring file on the cluster's nodes cannot be used",
                    where=policy_annotations.keyring,
                    remedy="put the keys into a ConfigMap and name it",
                )
            return policy_annotations.keyring
        name, _, key = policy_annotations.keyring.partition("/")
        directory, keys = self._mount(KEYRING, "ConfigMap", name, needs=(key,) if key else ())
        if not key:
            key = next(iter(keys)) if len(keys) == 1 else KEYRING
            self._require(ObjectRef(kind="ConfigMap", namespace=self._namespace, name=name), (key,))
        return f"{directory}/{key}"

    def cosign_keys(self, policy_annotations: PolicyAnnotations, source: SourceSpec) -> tuple[str, ...]:
        """Return the paths of the public keys that an annotation names, each a file or a directory."""
        keys = policy_annotations.cosign_keys
        if keys is None:
            return ()
        if not isinstance(source, RegistrySourceSpec):
            raise InvalidManifest(
                f"cosign signs container images, but the source is {source.kind}",
                where=COSIGN_KEYS_ANNOTATION,
                remedy="leave it out; checksum files are signed with OpenPGP (policy.signature and policy.keyring)",
            )
        if keys.startswith("/"):
            if not self._local_files:
                raise InvalidManifest(
                    "files on the cluster's nodes cannot be used",
                    where=COSIGN_KEYS_ANNOTATION,
                    remedy="put the public keys into a Secret and name it",
                )
            return (keys,)
        directory, _ = self._mount(COSIGN_KEYS, "Secret", keys)
        return (directory,)
