"""Fuzz target: any body of an admission review is rejected as malformed or gets a valid response.

python tests/fuzz/fuzz_admission.py -max_total_time=60
"""

from __future__ import annotations

import json
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cdi.api", "cdi.server", "cdi.reconcile.storage.claim_defaults"]):
    from cdi.api.errors import CdiError, InvalidManifest
    from cdi.reconcile.types import StorageDefaults
    from cdi.server import admission, clone_authorization, mutation
    from cdi.server.hooks import HOOKS, Hook
    from cdi.server.review import Review, answer, read

from tests.fuzz.documents import spoilt
from tests.fuzz.seeds import run
from tests.unit.api.manifests import SOUND, dv
from tests.unit.server.reviews import BY_NAME, hook_of, review

CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "a", "namespace": "default", "labels": {}, "annotations": {}},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}


def questions() -> list[tuple[Hook, dict[str, Any]]]:
    found = []
    for document in SOUND.values():
        for operation, old in (("CREATE", None), ("UPDATE", document)):
            try:
                hook = hook_of(document, operation)
            except StopIteration:  # no webhook reviews this
                continue
            found.append((hook, review(document, operation=operation, old=old)))
    clone = dv({"pvc": {"namespace": "golden", "name": "fedora"}})
    found.append((BY_NAME["datavolume-mutate"], review(clone)))
    found.append((BY_NAME["datavolume-mutate"], review(clone, operation="UPDATE", old=clone)))
    request = {
        "uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "PersistentVolumeClaim"}, "name": "a",
        "resource": {"group": "", "version": "v1", "resource": "persistentvolumeclaims"}, "namespace": "default",
        "operation": "CREATE", "userInfo": {"username": "alice", "groups": ["g"], "extra": {"a": ["b"]}}, "object": CLAIM,
    }  # fmt: skip
    found.append(
        (BY_NAME["pvc-mutate"], {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
    )
    return found


QUESTIONS = questions()


class World:
    """Lister of the other objects."""

    async def claim(self, namespace: str, name: str) -> dict[str, Any] | None:
        return CLAIM if name == "a" else None

    async def data_volume(self, namespace: str, name: str) -> dict[str, Any] | None:
        return {"metadata": {"name": "a"}} if name == "a" else None

    async def has_data_volumes(self) -> bool:
        return True

    def adopts_claims(self) -> bool:
        return False

    def renders_claims(self) -> bool:
        return True

    async def storage_defaults(self, storage_class: str | None, *, archive: bool) -> StorageDefaults:
        return StorageDefaults(storage_class=storage_class)

    async def data_source(self, namespace: str, name: str) -> None:
        return None

    async def snapshot(self, namespace: str, name: str) -> None:
        return None

    async def may(self, user: object, attributes: object) -> bool:
        return True

    def sign(self, claims: object) -> str:
        return "token"


WORLD = World()


def ended(work: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def verdict(hook: Hook, asked: Review) -> Any:
    match hook.name:
        case "datavolume-mutate":
            return ended(clone_authorization.authorise(asked, WORLD))
        case "pvc-mutate":
            return ended(mutation.mutate_claim(asked, WORLD))
        case _:
            return ended(admission.validate(asked, WORLD))


def target(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        hook, question = QUESTIONS[provider.ConsumeIntInRange(0, len(QUESTIONS) - 1)]
        body = json.dumps(spoilt(question, provider)).encode("utf-8", "surrogatepass")
    else:
        hook = HOOKS[provider.ConsumeIntInRange(0, len(HOOKS) - 1)]
        body = provider.ConsumeBytes(1 << 14)
    try:
        asked = read(body, hook)
    except InvalidManifest as error:
        assert len(error.what) < 400
        error.what.encode()
        return
    try:
        given = verdict(hook, asked)
    except CdiError:
        return  # it is answered as one that could not be decided, or is none
    sent = json.dumps(answer(asked, given))
    assert len(sent) < len(body) + 64_000
    assert json.loads(sent)["response"]["uid"] == asked.uid


def seeds() -> list[bytes]:
    # The provider takes numbers from the end.
    edited = [bytes(60) + bytes((number, 1)) for number in range(len(QUESTIONS))]
    raw = [json.dumps(question).encode() + bytes((HOOKS.index(hook), 0)) for hook, question in QUESTIONS[::5]]
    return [*edited, *raw]


if __name__ == "__main__":
    run(target, seeds(), 1 << 14, fixed=20_000)
