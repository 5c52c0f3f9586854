"""Tests of apply, get, describe and delete on a store without a supervisor."""

from __future__ import annotations

import json

import pytest
import yaml

DV = """
apiVersion: cdi.kubevirt.io/v1beta1
kind: DataVolume
metadata: {name: %s, labels: {app: x}}
spec:
  source: {http: {url: "http://127.0.0.1:1/x.qcow2"}}
  storage: {resources: {requests: {storage: 1Gi}}}
"""
SECRET = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {accessKeyId: me}\n"


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "dv.yaml"
    path.write_text(DV % "golden")
    return path


def test_apply_creates_then_leaves_alone_then_changes(cdi, manifest):
    assert cdi("apply", "-f", str(manifest)).out == "datavolume/golden created\n"
    assert cdi("apply", "-f", str(manifest)).out == "datavolume/golden unchanged\n"
    manifest.write_text(manifest.read_text().replace("app: x", "app: y"))
    assert cdi("apply", "-f", str(manifest)).out == "datavolume/golden configured\n"


def test_a_dry_run_says_the_same_and_writes_nothing(cdi, manifest):
    assert cdi("apply", "-f", str(manifest), "--dry-run").out == "datavolume/golden created (dry run)\n"
    assert cdi("get", "dv", "-o", "name").out == ""
    cdi("apply", "-f", str(manifest))
    assert cdi("apply", "-f", str(manifest), "--dry-run").out == "datavolume/golden unchanged (dry run)\n"
    manifest.write_text(manifest.read_text().replace("app: x", "app: y"))
    assert cdi("apply", "-f", str(manifest), "--dry-run").out == "datavolume/golden configured (dry run)\n"


def test_all_documents_of_all_files_are_applied(cdi, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.yaml").write_text(f"{DV % 'one'}\n---\n{SECRET}")
    (tmp_path / "m" / "b.json").write_text(
        json.dumps({"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(DV % "two")]})
    )
    (tmp_path / "m" / "readme.txt").write_text("not this")
    done = cdi("apply", "-f", str(tmp_path / "m"))
    assert done.out.split("\n")[:3] == ["datavolume/one created", "secret/s created", "datavolume/two created"]


def test_a_glob_and_what_the_shell_made_of_one(cdi, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(DV % name)
    assert len(cdi("apply", "-f", str(tmp_path / "*.yaml")).out.splitlines()) == 2
    done = cdi("apply", "-f", str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml"))
    assert len(done.out.splitlines()) == 2


def test_nothing_is_written_where_one_of_many_is_wrong(cdi, tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(f"{DV % 'one'}\n---\n{(DV % 'two').replace('storage: 1Gi', 'storage: lots').replace('url', 'uri')}")
    done = cdi("apply", "-f", str(path))
    assert done.status == 2
    assert "spec.source.http.url: Required value" in done.err
    assert "spec.storage.resources.requests.storage" in done.err
    assert f"({path}:11: DataVolume two)" in done.err
    assert cdi("get", "dv", "-o", "name").out == ""


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ("strict", 2, "spec.source.http.checkum: unknown field ("),
        ("warn", 0, "warning: "),
        ("ignore", 0, ""),
    ],
)
def test_a_field_that_is_not_known(cdi, manifest, how, status, words):
    manifest.write_text(manifest.read_text().replace("http: {", "http: {checkum: 'sha256:00', "))
    done = cdi("apply", "-f", str(manifest), "--validate", how)
    assert done.status == status
    assert words in done.err
    assert bool(done.err) == bool(words)
    assert (cdi("get", "dv", "-o", "name").out == "") == (status != 0)


def test_what_an_api_server_gave_may_be_applied_again(cdi, manifest):
    cdi("apply", "-f", str(manifest))
    again = cdi("get", "dv/golden", "-o", "yaml").out
    manifest.write_text(again.replace("metadata:", "metadata:\n  managedFields: []\n  selfLink: /x"))
    done = cdi("apply", "-f", str(manifest))
    assert (done.status, done.out) == (0, "datavolume/golden unchanged\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "not YAML"),
        ("", "no object"),
        ("a: 1\na: 2\n", "duplicate key"),
        ("- 1\n", "must be of type object, not array"),
        ("kind: DataVolume\n", "apiVersion"),
    ],
)
def test_what_is_no_manifest_is_refused(cdi, tmp_path, content, words):
    path = tmp_path / "m.yaml"
    path.write_text(content)
    done = cdi("apply", "-f", str(path))
    assert done.status == 2
    assert words in done.err


def test_the_namespace_option_is_for_manifests_that_name_none(cdi, manifest, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text((DV % "other").replace("{name:", "{namespace: mine, name:"))
    cdi("apply", "-n", "team", "-f", str(manifest), "-f", str(other))
    assert [line.split()[:2] for line in cdi("get", "dv", "-A").out.splitlines()[1:]] == [
        ["mine", "other"],
        ["team", "golden"],
    ]


def test_get_shows_the_columns_of_the_definition(cdi, manifest):
    cdi("apply", "-f", str(manifest))
    header, row = cdi("get", "dv").out.splitlines()
    assert header.split() == ["NAME", "PHASE", "PROGRESS", "RESTARTS", "AGE"]
    assert row.split()[0] == "golden"
    wide = cdi("get", "dv", "-o", "wide").out.splitlines()[0].split()
    assert wide[-3:] == ["SIZE", "SOURCE", "MESSAGE"]


@pytest.mark.parametrize("words", [["dv", "golden"], ["dv/golden"], ["DataVolume/golden"], ["datavolumes", "golden"]])
def test_get_takes_every_name_of_a_kind(cdi, manifest, words):
    cdi("apply", "-f", str(manifest))
    assert cdi("get", *words, "-o", "name").out == "datavolume/golden\n"


def test_get_gives_documents(cdi, manifest):
    cdi("apply", "-f", str(manifest))
    one = json.loads(cdi("get", "dv/golden", "-o", "json").out)
    assert one["metadata"]["name"] == "golden"
    assert yaml.safe_load(cdi("get", "dv/golden", "-o", "yaml").out) == one
    assert json.loads(cdi("get", "dv", "-o", "json").out)["items"] == [one]
    assert json.loads(cdi("get", "pvc", "-o", "json").out)["items"] == []


def test_get_of_several_kinds_names_each(cdi, manifest, tmp_path):
    secret = tmp_path / "s.yaml"
    secret.write_text(SECRET)
    cdi("apply", "-f", str(manifest), "-f", str(secret))
    out = cdi("get", "dv,secret").out
    assert "datavolume/golden" in out
    assert "secret/s" in out


def test_what_is_not_there_is_said(cdi):
    done = cdi("get", "dv", "nope")
    assert done.status == 2
    assert "there is no datavolume default/nope" in done.err
    assert cdi("get", "dv", "nope", "--ignore-not-found").status == 0
    done = cdi("get", "dv")
    assert (done.status, done.out) == (0, "")
    assert "no datavolumes found in namespace 'default'" in done.err


def test_describe_keeps_secrets_to_itself(cdi, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(SECRET)
    cdi("apply", "-f", str(path))
    out = cdi("describe", "secret/s").out
    assert "accessKeyId: 2 bytes" in out
    assert "bWU=" not in out


def test_describe_shows_the_object(cdi, manifest):
    cdi("apply", "-f", str(manifest))
    out = cdi("describe", "dv/golden").out
    assert "url: http://127.0.0.1:1/x.qcow2" in out
    assert "app: x" in out
    assert "not created yet" in out


def test_delete_by_name_and_by_manifest(cdi, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(SECRET)
    cdi("apply", "-f", str(path))
    assert cdi("delete", "secret", "s").out == "secret/s deleted\n"
    cdi("apply", "-f", str(path))
    assert cdi("delete", "-f", str(path)).out == "secret/s deleted\n"
    done = cdi("delete", "-f", str(path))
    assert done.status == 2
    assert cdi("delete", "-f", str(path), "--ignore-not-found").status == 0


def test_delete_goes_on_after_one_that_is_missing(cdi, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(SECRET)
    cdi("apply", "-f", str(path))
    done = cdi("delete", "secret", "nope", "s")
    assert done.status == 2
    assert done.out == "secret/s deleted\n"


def test_delete_asks_which(cdi):
    assert "no object is given" in cdi("delete").err
    assert "no names of datavolumes are given" in cdi("delete", "dv").err
    assert cdi("delete", "dv", "--all").status == 0


@pytest.mark.parametrize("words", [["dv/x", "y"], ["dv/"], ["nonsense", "x"]])
def test_words_that_name_nothing(cdi, words):
    done = cdi("get", *words)
    assert done.status == 2
    assert "Try:" in done.err


@pytest.mark.parametrize(
    "until", ["phase=Nonsense", "condition=Nonsense", "condition=Ready=False", "nonsense", "jsonpath={.status.x}=y"]
)
def test_what_cannot_be_waited_for(cdi, until):
    done = cdi("wait", "dv/x", "--for", until)
    assert done.status == 2
    assert "error[UsageError]" in done.err


@pytest.mark.parametrize("timeout", ["0.1", "100ms", "0s"])
def test_the_time_is_up(cdi, manifest, timeout, monkeypatch):
    cdi("apply", "-f", str(manifest))
    done = cdi("wait", "dv/golden", "--timeout", timeout)
    assert done.status == 8
    assert "error[WaitTimeout]: datavolume default/golden is" in done.err


@pytest.mark.parametrize(
    "until",
    [
        "phase=succeeded",
        "condition=ready",
        "jsonpath={.status.phase}=Succeeded",
        "jsonpath='{.status.phase}'=Succeeded",
    ],
)
def test_what_can_be_waited_for(cdi, manifest, until):
    cdi("apply", "-f", str(manifest))
    assert cdi("wait", "dv/golden", "--for", until, "--timeout", "0").status == 8


def test_wait_for_what_is_gone_once_it_is(cdi, manifest):
    done = cdi("wait", "secret/s", "--for", "delete")
    assert done.status == 2
    assert "there is no secret" in done.err


def test_a_limit_needs_a_number(cdi, manifest):
    cdi("apply", "-f", str(manifest))
    assert cdi("limit", "dv/golden").status == 2
    assert cdi("limit", "dv/golden", "--bandwidth", "fast").status == 2
    assert cdi("limit", "pvc/golden", "--bandwidth", "1M").status == 2
    done = cdi("limit", "golden", "--bandwidth", "5M", "--connections", "2")
    assert done.out == "datavolume/golden limited from its next attempt on; no worker is running\n"
    annotations = json.loads(cdi("get", "dv/golden", "-o", "json").out)["metadata"]["annotations"]
    assert annotations["cdi.kubevirt.io/policy.bandwidth"] == "5000000"
    assert annotations["cdi.kubevirt.io/policy.connections"] == "2"


def test_boot_check_of_nothing(cdi, tmp_path):
    done = cdi("boot-check", "x", "-n", "prod")
    assert (done.status, done.err.partition(".")[0]) == (2, "error[NotFound]: volume prod/x does not exist")
    assert "the disk does not exist" in cdi("boot-check", str(tmp_path / "x")).err


def test_an_upload_whose_size_nobody_knows(cdi):
    done = cdi("upload", "-", "x")
    assert done.status == 2
    assert "give --size" in done.err


def test_an_upload_onto_another_source(cdi, manifest):
    cdi("apply", "-f", str(manifest))
    assert "the source of the DataVolume is not an upload" in cdi("upload", str(manifest), "golden").err


def test_versions_are_told(cdi):
    told = json.loads(cdi("version", "-o", "json").out)
    assert set(told["tools"]) >= {"qemu-img", "gpgv"}
    assert told["cdi"] in cdi("version").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_made(cdi, shell):
    assert "_CDI_COMPLETE" in cdi("completion", shell).out


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["apply", "dry run"])
def test_annotations_that_cannot_be_followed_are_refused_at_once(cdi, manifest, options):
    manifest.write_text(
        (DV % "a").replace("labels: {app: x}", 'annotations: {cdi.kubevirt.io/policy.requireCheksum: "true"}')
    )
    done = cdi("apply", "-f", str(manifest), *options)
    assert done.status == 2
    assert "metadata.annotations[cdi.kubevirt.io/policy.requireCheksum]: Unsupported value" in done.err
    assert f"({manifest}:2: DataVolume a)" in done.err
    assert cdi("get", "dv", "-o", "name").out == ""


@pytest.mark.parametrize("word", ["yes", "no", "1", "1.0"])
@pytest.mark.parametrize("command", ["apply", "delete", "explain"])
def test_a_name_that_yaml_takes_for_something_else_is_told_with_its_document(cdi, manifest, command, word):
    manifest.write_text(f"{DV % 'a'}---\n{DV % word}")
    done = cdi(command, "-f", str(manifest))
    assert done.status == 2
    assert "must be of type string, not" in done.err
    assert "put it in quotes" in done.err
    assert f"({manifest}:10: " in done.err


def test_a_clone_of_nothing_is_refused_at_once(cdi, manifest):
    done = cdi("clone", "NOPE".lower(), "x")
    assert (done.status, done.out) == (2, "")
    assert (
        done.err == "error[NotFound]: volume default/nope does not exist. Try: list the volumes with cdi get pvc -A\n"
    )
    assert "volume other/golden does not exist" in cdi("clone", "golden", "x", "--from-namespace", "other").err
    assert cdi("get", "dv", "-o", "name").out == ""
    # A source whose DataVolume is still being filled is accepted, and so is a missing one in a manifest.
    cdi("apply", "-f", str(manifest))
    assert cdi("clone", "golden", "x", "--no-wait").out == "datavolume/x created\n"
    manifest.write_text(
        (DV % "y").replace('http: {url: "http://127.0.0.1:1/x.qcow2"}', "pvc: {namespace: d, name: later}")
    )
    assert cdi("apply", "-f", str(manifest)).out == "datavolume/y created\n"


@pytest.mark.parametrize(
    "line",
    ["get dv", "get all -A -o json", "describe dv/x", "describe dv", "wait dv/x", "logs dv/x", "explain dv/x", "explain -f {}",
     "apply -f {} --dry-run", "boot-check x", "delete dv --all", "inspect {}", "explain {}"],
)  # fmt: skip
def test_what_only_looks_makes_no_home(cdi, manifest, tmp_path, line):
    cdi(*line.format(manifest).split())
    assert not (tmp_path / "home").exists()
