"""Tests of actions that the executor of one machine carries out itself."""

from __future__ import annotations

import json
import subprocess

import pytest

from cdi.api.errors import NotFound
from cdi.api.golden import RECORD
from cdi.api.origin import parse_record
from cdi.reconcile.actions import ObjectRef, Plan, SignRecord
from cdi.runtime.environment import Environments
from cdi.runtime.executor import Executor
from cdi.runtime.home import Home
from cdi.runtime.launcher import Launcher
from cdi.store.base import Key
from cdi.store.file_store import LocalStore
from cdi.verify.dsse import verify

STATEMENT = '{"_type":"https://in-toto.io/Statement/v1"}'


@pytest.fixture
def machine(tmp_path):
    """A store with a PVC, and a function that carries out the signing of its record with a key."""
    home = Home(tmp_path / "home")
    home.make()
    store = LocalStore(home.objects)
    body = store.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "fedora", "namespace": "images"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
        }
    )
    action = SignRecord(
        key=ObjectRef(kind="Secret", namespace="images", name="signer"),
        statement=STATEMENT,
        plural="persistentvolumeclaims",
        namespace="images",
        name="fedora",
        uid=body["metadata"]["uid"],
        annotation=RECORD,
    )

    def carry_out(entries):
        def read_input(ref):
            assert ref.name == "signer"
            if entries is None:
                raise NotFound("Secret images/signer does not exist")
            return entries

        Executor(store, Launcher(home), read_input, Environments(home)).carry_out(Plan(actions=(action,)), body, 1e9)
        return parse_record(store.get(Key.of("pvc", "images", "fedora"))["metadata"]["annotations"][RECORD])

    return store, carry_out


def test_the_process_signs_a_record_with_the_key_in_the_secret(machine, tmp_path):
    _, carry_out = machine
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    public = subprocess.run(["openssl", "pkey", "-in", key, "-pubout"], capture_output=True, check=True).stdout
    assert verify(carry_out({"key.pem": key.read_bytes()}), public, where="record")


@pytest.mark.parametrize("entries", [None, {}, {"key.pem": b"not a key"}])
def test_without_a_usable_key_the_unsigned_record_is_written_and_an_event_says_why(machine, entries):
    store, carry_out = machine
    envelope = carry_out(entries)
    assert (envelope.payload.decode(), envelope.signatures) == (STATEMENT, ())
    (event,) = store.list("events", "images")
    assert event["reason"] == "RecordNotSigned"
    assert "not a key" not in json.dumps(event)
