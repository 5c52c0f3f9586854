"""Tests of the worker's pod mode: input files, and the termination message."""

import json
import os
import signal
import threading

import pytest

from cdi.api.errors import Retry
from cdi.api.job import (
    BlankSourceSpec,
    BlockTargetSpec,
    DirectoryTargetSpec,
    Failure,
    FileSourceSpec,
    FileTargetSpec,
    Job,
    Outcome,
)
from cdi.transfer.journal import Journal
from cdi.worker import pod as module
from cdi.worker.pod import Options, main, run


@pytest.fixture
def places(tmp_path):
    (tmp_path / "pod").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "kept").mkdir()
    return Options(
        job=str(tmp_path / "pod/job"),
        limits=str(tmp_path / "pod/limits"),
        journal=str(tmp_path / "pod/journal"),
        termination_log=str(tmp_path / "last-words"),
        port="0",
        state=str(tmp_path / "kept"),
    )


@pytest.fixture
def give(tmp_path, places):
    """Return a function that writes a job's file and returns the job."""

    def give(**fields):
        data = tmp_path / "data"
        usual = {
            "id": "x",
            "source": BlankSourceSpec(),
            "target": FileTargetSpec(path=str(data / "disk.img")),
            "size": 1 << 20,
            "journal": str(data / ".cdi/journal"),
        }
        job = Job(**(usual | fields))
        (tmp_path / "pod/job").write_text(job.to_json())
        return job

    return give


LOST = Failure(code="SourceUnreachable", message="gone", retry=Retry.BACKOFF, exit_status=3)
RETRIES = {"ImageCorrupt": Retry.NEVER, "ScratchNeeded": Retry.ON_CHANGE}


def last_words(places):
    with open(places.termination_log) as file:
        return json.load(file)


def failure(places):
    return Outcome.from_json(json.dumps(last_words(places)["outcome"])).failure


def journal(**fields):
    usual = {
        "job": "x", "path": "raw-ranged", "validator": '"v"', "length": 9, "watermark": 4, "disk_size": 512,
        "algorithm": None, "digest_state": None,
    }  # fmt: skip
    return Journal(**(usual | fields))


def test_a_job_ends_in_last_words_and_nothing_beside_the_disk(places, give, tmp_path):
    give()
    assert run(places) == 0
    words = last_words(places)
    assert words["message"] == "Import Complete"
    assert words["outcome"]["id"] == "x"
    assert os.listdir(tmp_path / "data") == ["disk.img"]


def test_the_files_are_named_by_options(places, give):
    give()
    assert main(
        ["--job", places.job, f"--limits={places.limits}", "--journal", places.journal, "--port=0",
         "--termination-log", places.termination_log]
    ) == 0  # fmt: skip
    assert last_words(places)["message"] == "Import Complete"


@pytest.mark.parametrize(
    "arguments",
    [
        ["x"],
        ["--job"],
        ["--jobs", "x"],
        ["-job", "x"],
        ["--port", "x"],
        ["--port", "-1"],
        ["--port=65536"],
        ["--", "x"],
    ],
)
def test_a_wrong_call_is_told(arguments, capsys):
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"id": 5}'])
def test_a_job_that_cannot_be_read_is_said(places, content):
    if content is not None:
        with open(places.job, "w") as file:
            file.write(content)
    assert run(places) == 2
    assert failure(places).code == "InvalidManifest"


def test_a_failure_is_said_and_is_the_exit_status(places, give, tmp_path):
    give(source=FileSourceSpec(path=str(tmp_path / "nothing")))
    assert run(places) == 3
    assert failure(places).code == "SourceNotFound"
    assert last_words(places)["message"] == failure(places).message
    assert os.listdir(tmp_path / "data") == []


@pytest.mark.parametrize("where", ["cdi.transfer.run._dispatch", "cdi.worker.pod._prepare_journal"])
def test_a_defect_is_said_too(places, give, monkeypatch, where):
    def defect(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(where, defect)
    give()
    assert run(places) == 7
    assert failure(places).code == "InternalError"


def test_a_volume_that_takes_no_journal_is_said(places, give, tmp_path):
    (tmp_path / "file").write_text("")
    give(journal=str(tmp_path / "file/journal"))
    assert run(places) == 6
    assert failure(places).code == "TargetUnsuitable"


def test_no_place_for_last_words_is_no_failure(places, give, capsys):
    give()
    assert run(Options(job=places.job, termination_log="/nowhere/at-all", port="0")) == 0
    assert "cannot write the termination message" in capsys.readouterr().err


# --- the journal


@pytest.mark.parametrize(
    ("own", "carried", "expected"),
    [
        (None, journal(), 4),
        (journal(watermark=7), journal(), 7),
        (None, journal(job="another"), None),
        (None, None, None),
    ],
)
def test_what_an_earlier_pod_left_is_begun_with(places, give, tmp_path, monkeypatch, own, carried, expected):
    seen = []

    def look(job, _control):
        found = Journal.load(job.journal)
        seen.append(None if found is None else found.watermark)
        return Outcome(id=job.id)

    monkeypatch.setattr(module, "transfer", look)
    job = give()
    if own is not None:
        (tmp_path / "data/.cdi").mkdir()
        own.save(job.journal)
    if carried is not None:
        carried.save(places.journal)
    else:
        (tmp_path / "pod/journal").write_text("")
    assert run(places) == 0
    assert seen == [expected]


def interrupted(job, _control):
    journal().save(job.journal)
    from cdi.api.errors import Interrupted
    from cdi.transfer.run import failure_of

    return Outcome(id=job.id, failure=failure_of(Interrupted("the transfer was stopped")))


def test_a_journal_that_goes_with_the_pod_is_said(places, give, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "transfer", interrupted)
    give(target=BlockTargetSpec(path="/dev/nothing"), journal=str(tmp_path / "state/journal"))
    assert run(places) == 130
    assert json.loads(last_words(places)["journal"])["watermark"] == 4


def test_a_journal_on_the_volume_stays_there(places, give, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "transfer", interrupted)
    give()
    assert run(places) == 130
    assert "journal" not in last_words(places)
    assert os.listdir(tmp_path / "data/.cdi") == ["journal"]


def test_a_directory_of_another_name_is_not_removed(places, give, tmp_path):
    give(journal=str(tmp_path / "state/journal"))
    assert run(places) == 0
    assert os.listdir(tmp_path / "state") == []


def test_an_archives_directory_is_its_own(places, give, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        module, "transfer", lambda job, _: seen.append(os.listdir(tmp_path / "data")) or Outcome(id=job.id)
    )
    give(target=DirectoryTargetSpec(path=str(tmp_path / "data")), content_type="archive", size=None)
    journal().save(places.journal)
    assert run(places) == 0
    assert seen == [[]]


# --- signals and limits


def test_a_signal_that_comes_early_stops_the_transfer_as_it_begins(places, give, monkeypatch):
    prepare = module._prepare_journal
    cancelled = []

    def signalled(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return prepare(*given)

    def look(job, control):
        cancelled.append(control.cancelled.wait(60))
        return Outcome(id=job.id)

    monkeypatch.setattr(module, "_prepare_journal", signalled)
    monkeypatch.setattr(module, "transfer", look)
    give()
    run(places)
    assert cancelled == [True]


def test_one_before_there_is_a_transfer_does_too(places, give, monkeypatch):
    read_job = module.read_job
    cancelled = []

    def signalled(path):
        os.kill(os.getpid(), signal.SIGTERM)
        return read_job(path)

    def look(job, control):
        cancelled.append(control.cancelled.is_set())
        return Outcome(id=job.id)

    monkeypatch.setattr(module, "read_job", signalled)
    monkeypatch.setattr(module, "transfer", look)
    give()
    run(places)
    assert cancelled == [True]


def test_limits_count_from_the_beginning(places, give, tmp_path, monkeypatch):
    limited = threading.Event()
    monkeypatch.setattr("cdi.transfer.control.TransferControl.limit", lambda _self, limits: limited.set())
    monkeypatch.setattr(module, "transfer", lambda job, _: limited.wait(60) and Outcome(id=job.id))
    (tmp_path / "pod/limits").write_text('{"bandwidth": 5}')
    give()
    assert run(places) == 0
    assert limited.is_set()


# --- restarts of the container ------------------------------------------------------------------------------------


def test_a_restarted_container_continues_the_transfer(places, give, tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(module, "transfer", lambda job, _: jobs.append(job) or Outcome(id=job.id, failure=LOST))
    give()
    assert [run(places), run(places), run(places)] == [3, 3, 3]
    assert [job.continued for job in jobs] == [False, True, True]


def test_a_container_that_failed_before_its_job_was_read_starts_the_transfer_as_new(places, give, monkeypatch):
    jobs = []
    monkeypatch.setattr(module, "transfer", lambda job, _: jobs.append(job) or Outcome(id=job.id))
    assert run(places) == 2
    os.unlink(f"{places.state}/final")
    give()
    assert run(places) == 0
    assert not jobs[0].continued


@pytest.mark.parametrize("code", ["ImageCorrupt", "ScratchNeeded"])
def test_a_restarted_container_repeats_a_failure_that_a_restart_cannot_mend(places, give, monkeypatch, code):
    jobs = []
    failure = Failure(code=code, message="no", retry=RETRIES[code], exit_status=5)
    monkeypatch.setattr(module, "transfer", lambda job, _: jobs.append(job) or Outcome(id=job.id, failure=failure))
    give()
    assert run(places) == 5
    first = last_words(places)
    os.unlink(places.termination_log)
    assert run(places) == 5
    assert last_words(places) == first
    assert len(jobs) == 1


@pytest.mark.parametrize("content", [b"", b"{", b'{"message": 1, "exit_status": 0}', bytes(1 << 17)])
def test_a_damaged_record_of_an_earlier_run_is_ignored(places, give, content):
    with open(f"{places.state}/final", "wb") as file:
        file.write(content)
    give()
    assert run(places) == 0


def test_a_pod_without_a_volume_for_its_state_starts_each_run_as_new(places, give):
    os.rmdir(places.state)
    give()
    assert [run(places), run(places)] == [0, 0]
