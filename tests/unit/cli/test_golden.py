"""Tests of the ``cdi golden`` commands on a store without a supervisor: what they show and what they write."""

from __future__ import annotations

import json

import pytest
import yaml

from cdi.local.home import Home
from cdi.store.base import Key
from cdi.store.file_store import LocalStore

GROUP = "cdi.kubevirt.io"
NEW, OLD = "a" * 64, "b" * 64
NEWEST, OLDER = f"fedora-{NEW[:12]}", f"fedora-{OLD[:12]}"
DESIRED = f"{GROUP}/storage.import.sourceDesiredDigest"
LAST = f"{GROUP}/storage.import.lastCronTime"
NEXT = f"{GROUP}/storage.import.nextCronTime"


def condition(kind, status, reason, message):
    moment = "2030-01-01T00:00:00Z"
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": moment,
        "lastHeartbeatTime": moment,
    }


class Machine:
    """The objects that a controller would have written."""

    def __init__(self, root):
        home = Home.find(root)
        home.make()
        self.store = LocalStore(home.objects)

    def cron(self, *, annotations=None, versions=None, conditions=None, schedule="0 3 * * *", **status):
        versions = [version(NEW), version(OLD)] if versions is None else versions
        conditions = [condition("UpToDate", "True", "UpToDate", "Latest import is up to date")] + (conditions or [])
        source = {"http": {"url": "https://images.example/fedora.qcow2"}}
        storage = {"resources": {"requests": {"storage": "1Gi"}}}
        self.store.create(
            {
                "apiVersion": f"{GROUP}/v1beta1",
                "kind": "DataImportCron",
                "metadata": {
                    "name": "fedora",
                    "namespace": "default",
                    "annotations": {DESIRED: f"sha256:{NEW}", **(annotations or {})},
                },
                "spec": {
                    "schedule": schedule,
                    "managedDataSource": "fedora",
                    "template": {"spec": {"source": source, "storage": storage}},
                },
                "status": {"versions": versions, "conditions": conditions, **status},
            }
        )
        self.offer(NEWEST)

    def offer(self, name):
        key = Key.of("datasource", "default", "fedora")
        body = {
            "apiVersion": f"{GROUP}/v1beta1",
            "kind": "DataSource",
            "metadata": {"name": "fedora", "namespace": "default"},
            "spec": {"source": {"pvc": {"namespace": "default", "name": name}}},
        }
        self.store.create(body)
        return key

    def claim(self, name, annotations):
        metadata = {"name": name, "namespace": "default", "annotations": annotations}
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        self.store.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})

    @property
    def annotations(self):
        return self.store.get(Key.of("dataimportcron", "default", "fedora"))["metadata"].get("annotations") or {}


def version(digest, state="Available", **more):
    return {"name": f"fedora-{digest[:12]}", "Digest": f"sha256:{digest}", "state": state, **more}


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "home")


def test_the_list_shows_what_is_current_wanted_and_in_the_way(cdi, machine):
    failed = version(NEW, state="Failed", reason="ChecksumMismatch", message="the digest differs")
    machine.cron(versions=[failed, version(OLD)], annotations={NEXT: "2020-01-01T00:00:00Z"})
    lines = cdi("golden", "list").out.splitlines()
    assert lines[0].split("   ")[0] == "NAME"
    assert NEWEST in lines[1]
    assert " Failed " in lines[1]
    assert " now " in lines[1]
    assert f"{NEWEST} Failed: the digest differs" in lines[1]


def test_the_list_as_json_has_the_same_facts(cdi, machine):
    machine.cron()
    (shown,) = json.loads(cdi("golden", "list", "-o", "json").out)
    assert (shown["name"], shown["current"], shown["wanted"], shown["state"]) == ("fedora", NEWEST, NEWEST, "UpToDate")
    assert shown["obstacles"] == []


def test_an_empty_list_says_so(cdi):
    done = cdi("golden", "list")
    assert (done.status, done.out, done.err) == (0, "", "no golden images found in namespace 'default'\n")


def test_the_history_is_newest_first_with_times_and_reasons(cdi, machine):
    old = version(OLD, withheld=True, found="2026-01-01T00:00:00Z", offered="2026-01-02T00:00:00Z")
    machine.cron(versions=[version(NEW), old])
    lines = cdi("golden", "history", "fedora").out.splitlines()
    assert [line.split()[0] for line in lines] == ["VERSION", NEWEST, OLDER]
    assert "Available, current" in lines[1]
    assert lines[2].split() == [OLDER, "Available,", "withheld", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]


def test_the_description_has_proof_checks_record_and_descendants(cdi, machine):
    proof = {"booted": True, "message": "login prompt", "accelerator": "kvm"}
    machine.cron(
        versions=[version(NEW, proof=proof, verifiedBy=["SHA256SUMS"]), version(OLD)],
        channels=[{"name": "fedora-stable", "version": OLDER}],
    )
    machine.claim(NEWEST, {f"{GROUP}/golden.record": '{"subject": "x"}'})
    origin = {"namespace": "default", "cron": "fedora", "version": NEWEST, "digest": f"sha256:{NEW}"}
    machine.claim("vm-1", {f"{GROUP}/golden.origin": json.dumps(origin)})
    machine.claim("other", {f"{GROUP}/golden.origin": "not json"})
    text = cdi("golden", "describe", "fedora").out
    assert "Boot proof:   booted (kvm): login prompt" in text
    assert "Verified by:  SHA256SUMS" in text
    assert "Volumes:      default/vm-1" in text
    assert f"fedora-stable   {OLDER}" in text
    shown = json.loads(cdi("golden", "describe", "fedora", "-o", "json").out)
    assert shown["versions"][0]["record"] == {"subject": "x"}
    assert shown["versions"][0]["volumes"] == ["default/vm-1"]
    assert shown["channels"] == [{"name": "fedora-stable", "version": OLDER}]


def test_an_unknown_image_is_named_with_a_remedy(cdi):
    done = cdi("golden", "describe", "nothing")
    assert done.status == 2
    assert "golden image default/nothing does not exist. Try: cdi golden list -A" in done.err


def test_another_kind_is_refused(cdi):
    assert "'dv/x' is not a golden image" in cdi("golden", "poll", "dv/x").err


@pytest.mark.parametrize(
    ("arguments", "annotation", "value"),
    [
        (("pin", "fedora", OLD[:6]), "pin", OLDER),
        (("rollback", "fedora"), "rollback", "previous"),
        (("rollback", "fedora", f"sha256:{OLD}"), "rollback", OLDER),
        (("promote", "fedora", "stable", OLDER), "promote", f"stable={OLDER}"),
        (("revoke", "fedora", OLDER, "--reason", "CVE-2026-1"), "revoke", f"{OLDER}: CVE-2026-1"),
        (("deprecate", "fedora", OLDER, "--never"), "deprecate", f"{OLDER} from=never"),
        (
            ("deprecate", "fedora", OLDER, "--from", "2027-03-31", "--end-of-life", "2027-06-30T12:00:00+02:00"),
            "deprecate",
            f"{OLDER} from=2027-03-31T00:00:00Z endOfLife=2027-06-30T10:00:00Z",
        ),
        (("retry", "fedora"), "retry", NEWEST),
        (("release", "fedora"), "release", "all"),
    ],
)
def test_a_command_writes_one_annotation(cdi, machine, arguments, annotation, value):
    machine.cron()
    before = machine.annotations
    assert cdi("golden", *arguments, "--no-wait").status == 0
    assert machine.annotations == {**before, f"{GROUP}/golden.{annotation}": value}


def test_hold_and_unhold_write_and_remove_the_annotation(cdi, machine):
    machine.cron()
    cdi("golden", "hold", "fedora")
    assert machine.annotations[f"{GROUP}/golden.hold"] == "true"
    cdi("golden", "unhold", "fedora")
    assert f"{GROUP}/golden.hold" not in machine.annotations


def test_a_version_that_does_not_exist_is_refused_before_anything_is_written(cdi, machine):
    machine.cron()
    before = machine.annotations
    done = cdi("golden", "pin", "fedora", "dddddddd")
    assert done.status == 2
    assert "dddddddd" in done.err
    assert "cdi golden history fedora" in done.err
    assert machine.annotations == before


def test_a_command_that_nobody_carries_out_ends_with_the_timeout_and_stays(cdi, machine):
    machine.cron()
    done = cdi("golden", "rollback", "fedora", "--timeout", "0")
    assert done.status == 8
    assert "it continues" in done.err
    assert machine.annotations[f"{GROUP}/golden.rollback"] == "previous"


ROLLBACK = 'annotation cdi.kubevirt.io/golden.rollback="previous": '
REVOKE = f'annotation cdi.kubevirt.io/golden.revoke="{OLDER}": refused'


@pytest.mark.parametrize(
    ("reason", "message", "status"),
    [
        ("CommandRefused", f"{ROLLBACK}the reason", 2),
        ("CommandRefused", f"{REVOKE}; {ROLLBACK}the reason; annotation a: b", 2),
        ("NotFollowed", f"{ROLLBACK}the reason", 8),
        # Another command is refused, or another value.
        ("CommandRefused", f"{ROLLBACK}waiting for the reason; {REVOKE}", 8),
        ("CommandRefused", f"{REVOKE}: not golden.rollback, but the reason", 8),
        ("CommandRefused", f"{ROLLBACK.replace('previous', OLDER)}the reason", 8),
    ],
)
def test_a_command_that_waits_is_not_refused(cdi, machine, reason, message, status):
    problem = condition("GoldenSettings", "False", reason, message)
    machine.cron(annotations={f"{GROUP}/golden.rollback": "previous"}, conditions=[problem])
    done = cdi("golden", "rollback", "fedora", "--timeout", "0")
    assert done.status == status
    assert "the reason" in done.err
    assert (REVOKE in done.err) == (status == 8 and REVOKE in message)
    # A refused command is withdrawn, one that waits stays.
    assert (f"{GROUP}/golden.rollback" in machine.annotations) == (status == 8)


@pytest.mark.parametrize("options", [("--no-wait",), ("--timeout", "0")])
def test_a_pending_command_is_not_replaced(cdi, machine, options):
    machine.cron(annotations={f"{GROUP}/golden.revoke": OLDER})
    done = cdi("golden", "revoke", "fedora", NEWEST, *options)
    assert done.status == 2
    assert f"golden.revoke='{OLDER}' has not been carried out. Try: wait until it has" in done.err
    assert machine.annotations[f"{GROUP}/golden.revoke"] == OLDER


def test_a_refused_command_is_replaced(cdi, machine):
    problem = condition("GoldenSettings", "False", "CommandRefused", REVOKE)
    machine.cron(annotations={f"{GROUP}/golden.revoke": OLDER}, conditions=[problem])
    assert cdi("golden", "revoke", "fedora", NEWEST, "--no-wait").status == 0
    assert machine.annotations[f"{GROUP}/golden.revoke"] == NEWEST


def test_a_poll_is_made_due_now(cdi, machine):
    machine.cron(annotations={NEXT: "2040-01-01T00:00:00Z"})
    assert cdi("golden", "poll", "fedora", "--no-wait").status == 0
    assert machine.annotations[NEXT] < "2040"


def test_an_image_without_schedule_is_never_polled(cdi, machine):
    machine.cron(schedule="")
    done = cdi("golden", "poll", "fedora")
    assert done.status == 2
    assert "has no schedule" in done.err


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        ({"state": "Failed", "reason": "ChecksumMismatch", "message": "differs"}, 5, "error[ChecksumMismatch]"),
        ({"state": "Unproven", "message": "no login prompt"}, 5, "is unproven: no login prompt"),
        ({"state": "Available", "withheld": True}, 5, "is withheld"),
    ],
)
def test_waiting_ends_with_the_reason_of_a_version_that_cannot_be_offered(cdi, machine, state, status, words):
    machine.cron(versions=[version(NEW, **state), version(OLD)])
    body = machine.store.get(Key.of("datasource", "default", "fedora"))
    body["spec"]["source"]["pvc"]["name"] = OLDER
    machine.store.update(body)
    done = cdi("golden", "wait", "fedora")
    assert done.status == status
    assert words in done.err


def test_waiting_for_an_offered_version_ends_at_once(cdi, machine):
    machine.cron()
    assert cdi("golden", "wait", "fedora").status == 0


def test_describe_shows_no_credentials_of_the_source(cdi, machine):
    machine.cron(versions=[version(NEW, source="https://user:pw@images.example/fedora.qcow2?token=t0k")])
    key = Key.of("dataimportcron", "default", "fedora")
    body = machine.store.get(key)
    body["spec"]["template"]["spec"]["source"]["http"]["url"] = "https://user:pw@images.example/fedora.qcow2?token=t0k"
    machine.store.update(body)
    shown = cdi("golden", "describe", "fedora").out
    assert shown.count("https://images.example/fedora.qcow2\n") == 2
    assert "pw@" not in shown
    assert "t0k" not in shown


# --- add ----------------------------------------------------------------------------------------------------------


def test_add_writes_the_cron_with_its_settings(cdi, machine):
    options = ("--size", "2Gi", "--keep", "5", "--channel", "stable=after=7d,proven", "--channel", "n-1=behind=1")
    more = ("--proof", "boot", "--proof-timeout", "10m", "--keep-for", "30d", "--architecture", "amd64")
    done = cdi("golden", "add", "https://images.example/fedora.qcow2", *options, *more)
    assert done.out == "dataimportcron/fedora created\n"
    body = machine.store.get(Key.of("dataimportcron", "default", "fedora"))
    assert body["spec"]["importsToKeep"] == 5
    assert body["spec"]["managedDataSource"] == "fedora"
    template = body["spec"]["template"]["spec"]
    assert template["source"] == {"http": {"url": "https://images.example/fedora.qcow2"}}
    assert template["storage"]["resources"]["requests"]["storage"] == "2Gi"
    annotations = machine.annotations
    assert json.loads(annotations[f"{GROUP}/golden.channels"]) == {
        "stable": {"after": "168h", "proven": True},
        "n-1": {"behind": 1},
    }
    assert annotations[f"{GROUP}/golden.proof"] == "boot"
    assert annotations[f"{GROUP}/golden.proofTimeout"] == "600s"
    assert annotations[f"{GROUP}/golden.keepFor"] == "720h"
    assert annotations[f"{GROUP}/golden.architectures"] == "amd64"


def test_add_again_changes_nothing_and_another_source_is_refused(cdi, machine):
    first = ("golden", "add", "docker://registry.example/fedora:42", "--name", "fedora", "--size", "1Gi")
    assert cdi(*first).out == "dataimportcron/fedora created\n"
    assert cdi(*first).out == "dataimportcron/fedora unchanged\n"
    done = cdi("golden", "add", "docker://registry.example/fedora:43", "--name", "fedora", "--size", "1Gi")
    assert done.status == 2
    assert "already exists with another spec" in done.err


def test_the_schedule_depends_on_the_name_alone(cdi, machine):
    def schedule(name):
        options = ("--name", name, "--size", "1Gi", "--dry-run")
        return yaml.safe_load(cdi("golden", "add", "docker://r.example/a", *options).out)["spec"]["schedule"]

    assert schedule("one") == schedule("one")
    assert schedule("one") != schedule("two")


def test_a_dry_run_writes_nothing(cdi, machine):
    done = cdi("golden", "add", "docker://r.example/a", "--size", "1Gi", "--dry-run", "-o", "json")
    assert json.loads(done.out)["kind"] == "DataImportCron"
    assert machine.store.list("dataimportcrons") == []


def test_credentials_become_a_secret_that_the_cron_owns(cdi, machine, tmp_path):
    (tmp_path / "password").write_text("secret\n")
    access = ("--username", "me", "--password-file", str(tmp_path / "password"))
    cdi("golden", "add", "https://images.example/fedora.qcow2", "--size", "1Gi", *access)
    (secret,) = machine.store.list("secrets")
    cron = machine.store.get(Key.of("dataimportcron", "default", "fedora"))
    assert secret["metadata"]["ownerReferences"][0]["uid"] == cron["metadata"]["uid"]
    assert cron["spec"]["template"]["spec"]["source"]["http"]["secretRef"] == secret["metadata"]["name"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("docker://r.example/a", "--checksum", f"sha256:{NEW}"), "--checksum allows one content only"),
        (("docker://r.example/a", "--content-type", "archive"), "a disk, not an archive"),
        (("docker://r.example/a", "--channel", "stable"), "is not NAME=RULE"),
        (("docker://r.example/a", "--channel", "stable=sometimes"), "is not a rule of channel 'stable'"),
        (("docker://r.example/a", "--channel", "s=proven", "--channel", "s=manual"), "is given twice"),
        (("docker://r.example/a", "--proof-timeout", "5m"), "require --proof boot"),
        (("docker://r.example/a", "--schedule", "61 * * * *"), "Illegal cron schedule"),
        (("docker://r.example/a", "--schedule", "@daily", "--no-schedule"), "exclude each other"),
        (("./a.qcow2",), "can be polled"),
    ],
)
def test_what_cannot_be_kept_up_to_date_is_refused(cdi, machine, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.qcow2").write_bytes(b"")
    done = cdi("golden", "add", *arguments, "--size", "1Gi")
    assert done.status == 2
    assert words in done.err
    assert machine.store.list("dataimportcrons") == []


def test_names_are_completed(machine):
    from cdi.cli.golden_name import GoldenName
    from cdi.cli.session import Session

    machine.cron()

    class Context:
        def find_object(self, kind):
            session = Session()
            session.root = machine.store._root.parent
            return session

    assert [item.value for item in GoldenName().shell_complete(Context(), None, "fe")] == ["fedora"]
    assert GoldenName().shell_complete(Context(), None, "x") == []
