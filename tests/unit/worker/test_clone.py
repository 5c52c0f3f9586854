"""Tests of both ends of a clone as pods run them: input files, and the termination message."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from cdi.api.copy import CopySourceJob
from cdi.api.errors import InvalidManifest
from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, FileTargetSpec, Job, Outcome, Policy
from cdi.api.peer import PeerSourceSpec
from cdi.transfer.journal import Journal
from cdi.worker import __main__ as entry
from cdi.worker import clone, pod
from cdi.worker.pod import Options
from cdi.worker.progress import endpoints
from tests.unit.worker.test_startup import HEAVY

SOURCE = CopySourceJob(id="uid", path="/source/disk.img", identity="claim")
TARGET = Job(
    id="uid",
    source=PeerSourceSpec(),
    target=FileTargetSpec(path="/data/disk.img"),
    size=1 << 20,
    journal="/data/.cdi/journal",
)


@pytest.mark.parametrize(
    "job",
    [
        SOURCE,
        TARGET,
        replace(TARGET, target=BlockTargetSpec(path="/dev/x"), size=None),
        replace(TARGET, target=DirectoryTargetSpec(path="/data"), content_type="archive"),
        replace(SOURCE, policy=Policy(bandwidth=5), content_type="archive", expected=3, linger=5.0),
    ],
)
def test_a_job_there_and_back(job):
    assert type(job).from_json(job.to_json()) == job


def test_little_has_to_be_said():
    assert CopySourceJob.from_json(b'{"id":"uid","path":"/d"}').tls.ca == "/var/run/cdi/tls/ca.crt"
    target = Job.from_json(b'{"id":"uid","source":{"kind":"peer"},"target":{"kind":"block","path":"/d"}}')
    assert target.source.port == 8444
    assert target.source.client_name == "client.upload-server.cdi.kubevirt.io"


@pytest.mark.parametrize("text", [b"", b"{}", b'{"id":"x","path":"/d","paths":1}'])
def test_what_is_no_job(text):
    with pytest.raises(InvalidManifest):
        CopySourceJob.from_json(text)
    with pytest.raises(InvalidManifest):
        Job.from_json(text)


@pytest.fixture
def places(tmp_path):
    return Options(
        job=str(tmp_path / "job"),
        limits=str(tmp_path / "limits"),
        journal=str(tmp_path / "carried"),
        termination_log=str(tmp_path / "end"),
        port="0",
    )


def last_words(places):
    with open(places.termination_log) as file:
        return json.load(file)


@pytest.mark.parametrize("run", [clone.run_source, clone.run_target])
def test_no_job(places, run):
    assert run(places) == InvalidManifest.exit_status
    assert last_words(places)["outcome"]["failure"]["code"] == "InvalidManifest"


def test_the_words_of_a_source(places, tmp_path, monkeypatch):
    seen = []

    def send(job, control):
        seen.append((job, control.throttle.bandwidth))
        return Outcome(id=job.id, path="copy-send")

    monkeypatch.setattr("cdi.transfer.clone.send.send", send)
    job = replace(SOURCE, policy=Policy(bandwidth=5))
    (tmp_path / "job").write_text(job.to_json())
    assert clone.run_source(places) == 0
    assert seen == [(job, 5)]
    assert last_words(places)["outcome"]["path"] == "copy-send"


def test_a_target_of_a_device_begins_with_the_carried_journal_and_leaves_its_own(places, tmp_path, monkeypatch):
    journal = Journal(
        job="uid",
        path="copy",
        validator="v",
        length=10,
        watermark=5,
        disk_size=10,
        algorithm=None,
        digest_state=None,
    )
    own = tmp_path / "state/journal"
    job = replace(TARGET, target=BlockTargetSpec(path="/dev/x"), journal=str(own))
    (tmp_path / "job").write_text(job.to_json())
    journal.save(str(tmp_path / "carried"))

    def receive(job, control, ready):
        assert Journal.load(job.journal) == journal
        replace(journal, watermark=7).save(job.journal)
        return Outcome(id=job.id, failure=pod.failure_of(InvalidManifest("stopped")))

    monkeypatch.setattr("cdi.transfer.clone.receive.receive", receive)
    assert clone.run_target(places) == InvalidManifest.exit_status
    assert json.loads(last_words(places)["journal"])["watermark"] == 7


def test_its_progress_is_a_clones():
    class Control:
        @staticmethod
        def progress():
            from cdi.api.job import Progress

            return Progress(phase="transferring", done=1, total=4)

    told = endpoints(TARGET, Control, lambda: None, "clone")["/metrics"]().body.decode()
    assert 'kubevirt_cdi_clone_progress_total{ownerUID="uid"} 25.00' in told


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["clone-source", "--port=1"], ("source", ["--port=1"])),
        (["clone-target", "--job", "x"], ("target", ["--job", "x"])),
        (["--job", "x"], ("pod", ["--job", "x"])),
        ([], ("pod", [])),
        (["pod", "--job", "x"], ("pod", ["--job", "x"])),
    ],
)
def test_the_program_of_the_image(monkeypatch, arguments, wanted):
    called = []
    monkeypatch.setattr(clone, "source", lambda rest: called.append(("source", rest)))
    monkeypatch.setattr(clone, "target", lambda rest: called.append(("target", rest)))
    monkeypatch.setattr(pod, "main", lambda rest: called.append(("pod", rest)))
    entry.command(arguments)
    assert called == [wanted]


@pytest.mark.parametrize("end", [clone.source, clone.target])
def test_a_wrong_call(end):
    assert end(["--nonsense"]) == 2


def test_what_is_imported_for_a_clone():
    script = "import sys, cdi.worker.clone; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = {name.partition(".")[0] for name in done.stdout.split()}
    assert found & (HEAVY | {"cryptography", "tarfile"}) == set()
