"""Users of the simulated cluster: what they create, edit and delete, and how each DataVolume has to end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cdi.api.annotations import DESIRED_DIGEST, NEXT_POLL
from cdi.api.golden import PIN, PROOF, RETRY, ROLLBACK
from cdi.api.kinds import (
    CLAIMS,
    DATA_IMPORT_CRONS,
    DATA_SOURCES,
    DATA_VOLUMES,
    OBJECT_TRANSFERS,
    PODS,
    SECRETS,
    STORAGE_PROFILES,
    VOLUME_CLONE_SOURCES,
    VOLUME_IMPORT_SOURCES,
    VOLUME_SNAPSHOTS,
    Object,
    Resource,
)
from cdi.api.names import ANN_CLONE_TOKEN
from cdi.controller.clone_lister import claims_of
from cdi.kube.jwt import SIGNING_KEY, SigningKey
from cdi.reconcile.clone.lister import CloneAuthorization
from tests.simulation.api_server import Refusal
from tests.simulation.cluster import TERMINAL, Cluster, Step
from tests.simulation.virtual_time import START
from tests.simulation.workers import KILLED, OK, Script, digest

API = "cdi.kubevirt.io/v1beta1"
SIZE = {"resources": {"requests": {"storage": "1Gi"}}}
TRANSIENT = ("SourceUnreachable", KILLED, "SourceForbidden", "ScratchNeeded")
FATAL = ("ChecksumMismatch", "FormatUnsupported")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a plan."""

    at: float
    """Seconds since the start of the run."""
    kind: str
    """The name of a method of `Users`."""
    place: tuple[str, str]
    """Namespace and name."""
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.at:7.2f} user {self.kind} {'/'.join(self.place)} {options}".rstrip()


class Users:
    """Users, with what they expect."""

    def __init__(self, cluster: Cluster, script: Script) -> None:
        self._cluster = cluster
        self._server = cluster.server
        self._script = script
        self.expected: dict[str, tuple[str, str]] = {}
        """Final phase and content of DataVolumes, by UID."""
        self.disturbed: set[tuple[str, str]] = set()
        """Places that users interfered with, so that no end is certain."""
        self.bad_contents: set[str] = set()
        """Contents that do not boot."""
        self.clones: dict[str, tuple[str, tuple[str, str]]] = {}
        """Kind and place of the sources of clones, by UID of the DataVolume."""

    # --- what happens by itself -----------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        for pod in self._server.all(PODS):
            if is_users(pod) and pod["status"].get("phase") in TERMINAL and "deletionTimestamp" not in pod["metadata"]:
                yield Step("user deletes pod", partial(self._remove, PODS, pod))

    def perform(self, operation: Operation) -> None:
        try:
            getattr(self, operation.kind)(*operation.place, **operation.options)
        except Refusal:
            pass  # the object does not exist any more, or exists already

    # --- DataVolumes ----------------------------------------------------------------------------------------------

    def data_volume(
        self, namespace: str, name: str, *, source: str, results: tuple[str, ...] = (), storage_class: str = "",
        of: tuple[str, str] = ("", ""), immediate: bool = True,
    ) -> None:  # fmt: skip
        """Create a DataVolume; `results` are those of its first attempts, and `of` is the source of a clone."""
        url = f"{namespace}/{name}.{len(self.expected)}"
        spec: Object = {"storage": dict(SIZE)}
        if storage_class:
            spec["storage"]["storageClassName"] = storage_class
        annotations = {"cdi.kubevirt.io/storage.bind.immediate.requested": "true"} if immediate else {}
        content = ""
        match source:
            case "http":
                content = f"http://server/{url}"
                spec["source"] = {"http": {"url": content}}
            case "registry":
                content = f"docker://registry/{url.lower()}"
                spec["source"] = {"registry": {"url": content}}
            case "blank" | "upload":
                content = "blank" if source == "blank" else f"upload {namespace}"
                spec["source"] = {source: {}}
            case "pvc" | "snapshot":
                spec["source"] = {source: {"namespace": of[0], "name": of[1]}}
                if of[0] != namespace:
                    kind = "PersistentVolumeClaim" if source == "pvc" else "VolumeSnapshot"
                    annotations[ANN_CLONE_TOKEN] = self._token(kind, of, (namespace, name))
            case "sourceRef":
                spec["sourceRef"] = {"kind": "DataSource", "namespace": of[0], "name": of[1]}
        body = {"metadata": {"namespace": namespace, "name": name, "annotations": annotations}, "spec": spec}
        if (namespace, name) in self.disturbed or self._server.find(CLAIMS, namespace, name) is not None:
            self.disturbed.add((namespace, name))
        made = self._server.perform("create", DATA_VOLUMES, body, client="user")
        ends = [one for one in results if one in FATAL]
        if content:
            if source in ("http", "registry"):
                self._script.results[content] = list(results)
            self.expected[made["metadata"]["uid"]] = ("Failed" if ends else "Succeeded", content)
        else:
            self.expected[made["metadata"]["uid"]] = ("", "")
            self.clones[made["metadata"]["uid"]] = (source, of)

    def delete_data_volume(self, namespace: str, name: str) -> None:
        self.disturbed.add((namespace, name))
        self._server.remove(DATA_VOLUMES, namespace, name, client="user")

    def delete_claim(self, namespace: str, name: str) -> None:
        self.disturbed.add((namespace, name))
        self._server.remove(CLAIMS, namespace, name, client="user")

    def edit_data_volume(self, namespace: str, name: str, *, label: str) -> None:
        self._patch(DATA_VOLUMES, namespace, name, metadata={"labels": {"edited": label}})

    def consume(self, namespace: str, name: str) -> None:
        """Create a pod, such as that of a virtual machine, which uses a PVC for some time."""
        body = {
            "metadata": {"namespace": namespace, "generateName": f"vm-{name}-"},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "vm", "image": "vm", "volumeMounts": [{"name": "disk", "mountPath": "/disk"}]}],
                "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": name}}],
            },
        }
        self._server.perform("create", PODS, body, client="user")

    # --- PVCs, snapshots, DataSources -----------------------------------------------------------------------------

    def populated_claim(
        self, namespace: str, name: str, *, source: str, of: tuple[str, str] = ("", ""), storage_class: str = "ceph"
    ) -> None:
        """Create a PVC with a dataSourceRef, and the volume source."""
        ref = f"{name}-source"
        kind, resource = "VolumeImportSource", VOLUME_IMPORT_SOURCES
        spec: Object = {"source": {"http": {"url": f"http://server/{namespace}/{name}"}}}
        if source == "clone":
            kind, resource = "VolumeCloneSource", VOLUME_CLONE_SOURCES
            spec = {"source": {"kind": "PersistentVolumeClaim", "name": of[1]}}
        self._server.perform(
            "create", resource, {"metadata": {"namespace": namespace, "name": ref}, "spec": spec}, client="user"
        )
        body = {
            "metadata": {"namespace": namespace, "name": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": storage_class,
                **SIZE,
                "dataSourceRef": {"apiGroup": "cdi.kubevirt.io", "kind": kind, "name": ref},
            },
        }
        self._server.perform("create", CLAIMS, body, client="user")

    def snapshot(self, namespace: str, name: str, *, of: str) -> None:
        body = {
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"volumeSnapshotClassName": "ceph-snapshots", "source": {"persistentVolumeClaimName": of}},
        }
        self._server.perform("create", VOLUME_SNAPSHOTS, body, client="user")

    def data_source(self, namespace: str, name: str, *, source: str, of: tuple[str, str]) -> None:
        body = {
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"source": {source: {"namespace": of[0], "name": of[1]}}},
        }
        self._server.perform("create", DATA_SOURCES, body, client="user")

    def clone_strategy(self, _: str, name: str, *, strategy: str) -> None:
        self._patch(STORAGE_PROFILES, "", name, spec={"cloneStrategy": strategy})

    def transfer(self, namespace: str, name: str, *, to: tuple[str, str], kind: str) -> None:
        self.disturbed |= {(namespace, name), to}
        body = {
            "metadata": {"name": f"transfer-{name}"},
            "spec": {
                "source": {"kind": kind, "namespace": namespace, "name": name},
                "target": {"namespace": to[0], "name": to[1]},
            },
        }
        self._server.perform("create", OBJECT_TRANSFERS, body, client="user")

    def delete_transfer(self, _: str, name: str) -> None:
        self._server.remove(OBJECT_TRANSFERS, "", name, client="user")

    # --- golden images --------------------------------------------------------------------------------------------

    def cron(
        self,
        namespace: str,
        name: str,
        *,
        keep: int = 1,
        proof: bool = False,
        retention: str = "All",
        schedule: str = "",
    ) -> None:
        url = f"docker://registry/{name}"
        body = {
            "metadata": {"namespace": namespace, "name": name, "annotations": {PROOF: "boot"} if proof else {}},
            "spec": {
                "template": {"spec": {"source": {"registry": {"url": url}}, "storage": dict(SIZE)}},
                "schedule": schedule,
                "managedDataSource": f"{name}-source",
                "importsToKeep": keep,
                "retentionPolicy": retention,
            },
        }
        self._server.perform("create", DATA_IMPORT_CRONS, body, client="user")

    def version(
        self, namespace: str, name: str, *, number: int, results: tuple[str, ...] = (), proofs: tuple[str, ...] = ()
    ) -> None:
        """Publish a version of a golden image, and poll."""
        wanted = digest(f"{name}-{number}")
        self._script.digests[f"registry/{name}"] = wanted
        content = f"docker://registry/{name}@{wanted}"
        self._script.results[content] = list(results)
        self._script.proofs[content] = list(proofs)
        if any(one != OK and one != KILLED for one in proofs):
            self.bad_contents.add(content)
        cron = self._server.find(DATA_IMPORT_CRONS, namespace, name)
        if cron is None:
            return
        if cron["spec"]["schedule"]:
            annotations = {NEXT_POLL.key: self._cluster.stamp()}
        else:
            annotations = {DESIRED_DIGEST.key: wanted}
        self._patch(DATA_IMPORT_CRONS, namespace, name, metadata={"annotations": annotations})

    def command(self, namespace: str, name: str, *, command: str, number: int) -> None:
        """Pin, roll back or retry a version."""
        wanted = digest(f"{name}-{number}")
        texts = {
            "pin": {PIN: wanted},
            "unpin": {PIN: None},
            "rollback": {ROLLBACK: "previous"},
            "retry": {RETRY: wanted},
        }
        self._patch(DATA_IMPORT_CRONS, namespace, name, metadata={"annotations": texts[command]})

    def delete_cron(self, namespace: str, name: str) -> None:
        self._server.remove(DATA_IMPORT_CRONS, namespace, name, client="user")

    # --- requests -------------------------------------------------------------------------------------------------

    def _patch(self, resource: Resource, namespace: str, name: str, **patch: Any) -> None:
        found = self._server.find(resource, namespace, name)
        if found is not None:
            self._cluster.change(resource, found, client="user", **patch)

    def _remove(self, resource: Resource, body: Object) -> None:
        self._server.remove(resource, body["metadata"].get("namespace") or "", body["metadata"]["name"], client="user")

    def _token(self, kind: Any, of: tuple[str, str], target: tuple[str, str]) -> str:
        """Return the token that admission puts on a clone from another namespace."""
        import base64

        secret = self._server.find(SECRETS, "cdi", SIGNING_KEY)
        assert secret is not None
        key = SigningKey.load(base64.b64decode(secret["data"]["id_rsa"]))
        assert key is not None
        grant = CloneAuthorization(
            kind=kind, namespace=of[0], name=of[1], target_namespace=target[0], target_name=target[1]
        )
        return key.sign(claims_of(grant), START + self._cluster.now())


def is_users(pod: Object) -> bool:
    return pod["metadata"]["name"].startswith("vm-")


# --- plans ------------------------------------------------------------------------------------------------------


def generate(chance: random.Random, until: float) -> list[Operation]:
    """Return operations at random times: of one scenario, or of several at once."""
    scenarios = chance.choice(((_volumes,), (_clones,), (_golden,), (_golden,), (_clones, _volumes), (_moves,)))
    return sorted(
        (operation for scenario in scenarios for operation in scenario(chance, until)), key=lambda one: one.at
    )


def _moment(chance: random.Random, until: float, after: float = 0.0) -> float:
    return round(chance.uniform(after, until), 2)


def _results(chance: random.Random) -> tuple[str, ...]:
    bad = tuple(chance.choice(TRANSIENT) for _ in range(chance.choice((0, 0, 1, 2))))
    return (*bad, chance.choice(FATAL)) if chance.random() < 0.15 else bad


def _class(chance: random.Random) -> str:
    return chance.choice(("", "", "local"))


def _volumes(chance: random.Random, until: float) -> Iterator[Operation]:
    base = chance.randrange(100)
    for number in range(chance.choice((1, 2, 3))):
        place = ("default", f"d{base + number}")
        at = _moment(chance, until / 2)
        source = chance.choice(("http", "http", "registry", "blank", "upload"))
        immediate = chance.random() < 0.7
        options = {
            "source": source,
            "results": _results(chance) if source in ("http", "registry") else (),
            "storage_class": _class(chance),
            "immediate": immediate,
        }
        yield Operation(at, "data_volume", place, options)
        if not immediate:
            yield Operation(_moment(chance, until, at), "consume", place)
        what = chance.random()
        if what < 0.15:
            gone = _moment(chance, until, at)
            yield Operation(gone, "delete_data_volume", place)
            if chance.random() < 0.6:
                yield Operation(_moment(chance, until, gone), "data_volume", place, options)
        elif what < 0.2:
            yield Operation(_moment(chance, until, at), "delete_claim", place)
        elif what < 0.35:
            yield Operation(_moment(chance, until, at), "edit_data_volume", place, {"label": "x"})
    if chance.random() < 0.25:
        yield Operation(_moment(chance, until / 2), "populated_claim", ("default", f"p{base}"), {"source": "import"})


def _clones(chance: random.Random, until: float) -> Iterator[Operation]:
    base = chance.randrange(100, 200)
    source = (chance.choice(("default", "golden")), f"s{base}")
    yield Operation(0.0, "data_volume", source, {"source": "http", "storage_class": _class(chance), "results": ()})
    if chance.random() < 0.5:
        yield Operation(
            _moment(chance, until / 4), "clone_strategy", ("", "ceph"),
            {"strategy": chance.choice(("snapshot", "copy", "csi-clone"))},
        )  # fmt: skip
    kind = chance.choice(("pvc", "pvc", "snapshot", "sourceRef"))
    of = source
    if kind == "snapshot":
        of = (source[0], f"snap{base}")
        yield Operation(_moment(chance, until / 2), "snapshot", of, {"of": source[1]})
    if kind == "sourceRef":
        of = (source[0], f"ds{base}")
        yield Operation(_moment(chance, until / 4), "data_source", of, {"source": "pvc", "of": source})
    for number in range(chance.choice((1, 1, 2, 3))):
        # Admission would put a token for what the DataSource refers to on a clone from another namespace.
        namespace = source[0] if kind == "sourceRef" else chance.choice(("default", "default", "other"))
        place = (namespace, f"c{base + number}")
        at = _moment(chance, until * 0.7)
        options = {"source": kind, "of": of, "storage_class": chance.choice(("", "", "ceph", "local"))}
        yield Operation(at, "data_volume", place, options)
        if chance.random() < 0.15:
            yield Operation(_moment(chance, until, at), "delete_data_volume", place)
    if chance.random() < 0.2:
        yield Operation(
            _moment(chance, until / 2), "populated_claim", (source[0], f"q{base}"), {"source": "clone", "of": source}
        )
    what = chance.random()
    if what < 0.15:
        yield Operation(_moment(chance, until, until / 3), "delete_data_volume", source)
    elif what < 0.3:
        yield Operation(_moment(chance, until, until / 3), "consume", source)


def _golden(chance: random.Random, until: float) -> Iterator[Operation]:
    place = ("golden", f"fedora{chance.randrange(10)}")
    proof = chance.random() < 0.5
    options = {
        "keep": chance.choice((1, 2)), "proof": proof, "retention": chance.choice(("All", "None")),
        "schedule": chance.choice(("", "0 * * * *")),
    }  # fmt: skip
    if chance.random() < 0.5:
        # Not at the start, when the StorageProfile does not exist yet.
        yield Operation(2.0, "clone_strategy", ("", "ceph"), {"strategy": chance.choice(("snapshot", "copy"))})
    yield Operation(0.0, "cron", place, options)
    at = 0.0
    for number in range(1, chance.choice((2, 3, 4))):
        proofs: tuple[str, ...] = ()
        if proof:
            proofs = chance.choice(((), (KILLED,), ("panic",) * 50))
        yield Operation(at, "version", place, {"number": number, "results": _results(chance), "proofs": proofs})
        at = round(at + chance.uniform(5.0, until / 2), 2)
        if chance.random() < 0.3:
            command = chance.choice(("pin", "unpin", "rollback", "retry"))
            yield Operation(round(at - 2.0, 2), "command", place, {"command": command, "number": number})
    if chance.random() < 0.5:
        options = {"source": "sourceRef", "of": ("golden", f"{place[1]}-source")}
        yield Operation(_moment(chance, max(at, 1.0)), "data_volume", ("golden", "vm1"), options)
    if chance.random() < 0.2:
        yield Operation(_moment(chance, at + 30.0), "delete_cron", place)


def _moves(chance: random.Random, until: float) -> Iterator[Operation]:
    place, to = ("default", f"m{chance.randrange(10)}"), ("other", "moved")
    yield Operation(0.0, "data_volume", place, {"source": "http", "results": ()})
    kind = chance.choice(("DataVolume", "PersistentVolumeClaim"))
    yield Operation(_moment(chance, until / 2), "transfer", place, {"to": to, "kind": kind})
    if chance.random() < 0.3:
        yield Operation(_moment(chance, until), "delete_transfer", ("", f"transfer-{place[1]}"))
    if chance.random() < 0.3:
        yield Operation(_moment(chance, until), "consume", place)
    if chance.random() < 0.2:
        yield Operation(_moment(chance, until), "delete_data_volume", place)
