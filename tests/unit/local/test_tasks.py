"""Tests of polls and proofs as processes: start, result, termination and removal."""

from __future__ import annotations

import json
import time

import pytest

from cdi.api.job import HttpSourceSpec
from cdi.api.poll import PollJob, PollResult
from cdi.local.tasks import Tasks, task_directory
from cdi.reconcile.actions import Mount, ObjectRef, StartTask

UID = "11111111-2222"
WAIT = 60.0


@pytest.fixture
def tasks(home):
    made = Tasks(home)
    yield made
    until(lambda: all(made.stop("poll", uid, grace=0) for uid in made.known("poll")))


def until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def poll(url="http://127.0.0.1:1/x", mounts=()):
    return StartTask(uid=UID, work=PollJob(id=UID, source=HttpSourceSpec(url=url)), mounts=mounts)


def silent(tmp_path, name="silent"):
    """Return the name of a module that ignores its arguments and never ends."""
    (tmp_path / f"{name}.py").write_text("import time\nwhile True: time.sleep(1)\n")
    return name


def test_there_is_no_task_before_the_first(tasks):
    assert tasks.observe("poll", UID) is None
    assert not tasks.running("poll", UID)
    assert tasks.known("poll") == []


def test_the_result_is_that_of_the_worker(tasks):
    # A file: URL is refused at once, without a connection.
    assert tasks.start(poll("ftp://127.0.0.1/x"), lambda ref: {})
    until(lambda: not tasks.running("poll", UID))
    ended = tasks.observe("poll", UID)
    assert ended is not None
    assert ended.ended is not None
    assert ended.ended >= ended.started
    result = PollResult.from_json(ended.result)
    assert result.id == UID
    assert result.failure is not None


def test_only_one_task_of_a_kind_runs_for_an_object(tmp_path, home, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tasks = Tasks(home, module=silent(tmp_path))
    assert tasks.start(poll(), lambda ref: {})
    assert not tasks.start(poll(), lambda ref: {})
    running = tasks.observe("poll", UID)
    assert running is not None
    assert running.running
    # Another launcher finds the same process by its lock.
    assert Tasks(home).running("poll", UID)
    until(lambda: Tasks(home).stop("poll", UID, grace=0))
    ended = tasks.observe("poll", UID)
    assert ended is not None
    assert (ended.running, ended.result) == (False, "")


def test_secrets_exist_only_while_the_task_runs(home, tasks):
    directory = task_directory(home, "poll", UID)
    ref = ObjectRef(kind="Secret", namespace="default", name="s")
    mount = Mount(directory=str(directory.inputs / "secret"), inputs=(ref,))
    tasks.start(poll("ftp://127.0.0.1/x", (mount,)), lambda ref: {"key": b"a-value-of-its-own"})
    until(lambda: not tasks.running("poll", UID))
    tasks.observe("poll", UID)
    assert not directory.inputs.exists()
    assert b"a-value-of-its-own" not in b"".join(path.read_bytes() for path in home.tasks.rglob("*") if path.is_file())


def test_a_new_task_does_not_have_the_result_of_the_last(tmp_path, home, tasks, monkeypatch):
    tasks.start(poll("ftp://127.0.0.1/x"), lambda ref: {})
    until(lambda: not tasks.running("poll", UID))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    again = Tasks(home, module=silent(tmp_path, "silent_again"))
    assert again.start(poll(), lambda ref: {})
    observed = again.observe("poll", UID)
    assert observed is not None
    assert (observed.running, observed.result) == (True, "")


def test_tasks_of_deleted_objects_are_stopped_and_removed(tmp_path, home, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tasks = Tasks(home, module=silent(tmp_path, "silent_deleted"))
    tasks.start(poll(), lambda ref: {})
    assert not tasks.collect(lambda task, uid: True)
    assert tasks.running("poll", UID)
    until(lambda: not tasks.collect(lambda task, uid: False))
    assert tasks.known("poll") == []


def test_the_job_is_written_for_the_worker(home, tasks):
    tasks.start(poll("ftp://127.0.0.1/x"), lambda ref: {})
    job = json.loads(task_directory(home, "poll", UID).job.read_text())
    assert job["id"] == UID
