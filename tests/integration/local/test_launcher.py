from __future__ import annotations

import os
import signal
import stat
import threading

import pytest

from cdi import atomic_file
from cdi.api.errors import InternalError, NotFound
from cdi.api.job import FileTargetSpec, HttpSourceSpec, Job, Limits, Retry, StreamSourceSpec
from cdi.local.launcher import Launcher
from cdi.local.processes import LOG_LIMIT, rotate, with_arguments
from cdi.reconcile.actions import Mount, ObjectRef, StartWorker

UID = "0a1b"


def action(home, deed="ok", attempt=1, **kw):
    source = StreamSourceSpec() if deed == "stream" else HttpSourceSpec(url=f"http://fake/{deed}")
    job = Job(id=UID, source=source, target=FileTargetSpec(path=str(home.root / "disk")), size=8192)
    return StartWorker(claim=UID, attempt=attempt, work=job, fingerprint="f", **kw)


def nothing(ref):
    raise NotFound(f"{ref}")


def ended(launcher):
    worker = launcher.observe(UID)
    return worker if worker and not worker.running else None


def test_a_worker_runs_and_its_outcome_is_seen(home, launcher, until):
    assert launcher.observe(UID) is None
    assert launcher.start(action(home), nothing)
    worker = until(lambda: ended(launcher))
    assert worker.attempt == 1
    assert worker.fingerprint == "f"
    assert worker.outcome.failure is None
    assert worker.progress.done == 100
    assert worker.ended >= worker.started
    assert (home.root / "disk").stat().st_size == 8192


def test_it_is_alive_from_the_moment_that_start_returns(home, launcher):
    launcher.start(action(home, "hang"), nothing)
    assert launcher.alive(UID)
    assert Launcher(home).observe(UID).running


def test_an_attempt_is_begun_once(home, launcher, until):
    assert launcher.start(action(home, "hang"), nothing)
    assert not launcher.start(action(home, "hang"), nothing)
    assert not launcher.start(action(home, "hang", attempt=2), nothing)
    until(lambda: launcher.stop(UID, grace=0))
    assert not launcher.start(action(home), nothing)
    assert launcher.start(action(home, attempt=2), nothing)
    assert until(lambda: ended(launcher)).attempt == 2


def test_a_failure_comes_through(home, launcher, until):
    launcher.start(action(home, "fail-SourceNotFound"), nothing)
    failure = until(lambda: ended(launcher)).outcome.failure
    assert (failure.code, failure.retry) == ("SourceNotFound", Retry.ON_CHANGE)


def test_a_killed_worker_is_lost_once_and_its_last_words_are_kept(home, launcher, until):
    launcher.start(action(home, "die"), nothing)
    worker = until(lambda: ended(launcher))
    assert worker.outcome.failure.code == "WorkerLost"
    assert "my last line" in worker.outcome.failure.message
    assert worker.progress.done == 10
    assert Launcher(home).observe(UID) == worker


def test_an_outcome_that_cannot_be_read_is_a_failure(home, launcher, until):
    launcher.start(action(home, "nonsense"), nothing)
    assert until(lambda: ended(launcher)).outcome.failure.code == "InternalError"


def test_a_worker_that_does_not_stop_is_killed(home, launcher, until):
    launcher.start(action(home, "stubborn"), nothing)
    until(lambda: b"ready" in home.worker(UID).log.read_bytes())
    assert not launcher.stop(UID, grace=1000)
    assert launcher.alive(UID)
    until(lambda: launcher.stop(UID, grace=0))
    assert launcher.observe(UID).outcome.failure.code == "WorkerLost"


def test_any_launcher_can_stop_any_worker(home, launcher, until):
    launcher.start(action(home, "hang"), nothing)
    other = Launcher(home)
    until(lambda: other.stop(UID))
    assert not launcher.alive(UID)


def test_stopping_asks_only_the_worker_of_that_directory(home, launcher, until):
    launcher.start(action(home, "hang"), nothing)
    pids = until(lambda: with_arguments("--status-dir", str(home.worker(UID).path)))
    assert len(pids) == 1
    assert os.getpgid(pids[0]) == pids[0] != os.getpgid(0)
    assert not with_arguments("--status-dir", str(home.worker(UID).path)[:-1])
    assert not with_arguments(str(home.worker(UID).path), "--status-dir")


def test_a_stream_is_handed_over(home, launcher, until, tmp_path):
    (tmp_path / "in").write_bytes(b"hello")
    with open(tmp_path / "in", "rb") as file:
        launcher.start(action(home, "stream"), nothing, stdin=file.fileno())
    until(lambda: ended(launcher))
    assert (home.root / "disk").read_bytes()[:6] == b"hello\0"


def test_inputs_are_files_that_only_the_owner_reads(home, launcher, until):
    place = str(home.worker(UID).inputs / "secret")
    both = str(home.worker(UID).inputs / "certificates")
    secret = ObjectRef(kind="Secret", namespace="default", name="s")
    maps = tuple(ObjectRef(kind="ConfigMap", namespace="default", name=n) for n in "ab")
    mounts = (Mount(directory=place, inputs=(secret,)), Mount(directory=both, inputs=maps))
    content = {
        secret: {"accessKeyId": b"me", ".dockerconfigjson": b"{}"},
        maps[0]: {"ca.pem": b"A"},
        maps[1]: {"ca.pem": b"B"},
    }
    launcher.start(action(home, mounts=mounts), content.__getitem__)
    directory = home.worker(UID).inputs
    assert (directory / "secret" / "accessKeyId").read_bytes() == b"me"
    assert sorted(p.read_bytes() for p in (directory / "certificates").iterdir()) == [b"A", b"B"]
    for path in directory.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    until(lambda: ended(launcher))
    launcher.tidy(UID)
    assert not directory.exists()


def test_a_missing_input_begins_nothing(home, launcher):
    ref = ObjectRef(kind="Secret", namespace="default", name="s")
    mount = Mount(directory=str(home.worker(UID).inputs / "secret"), inputs=(ref,))
    with pytest.raises(NotFound):
        launcher.start(action(home, mounts=(mount,)), nothing)
    assert launcher.observe(UID) is None
    assert not launcher.alive(UID)


def test_limits_reach_a_running_worker_only(home, launcher, until):
    limits = Limits(bandwidth=5, connections=2)
    assert not launcher.limit(UID, limits)
    launcher.start(action(home, "hang"), nothing)
    assert launcher.limit(UID, limits)
    assert Limits.from_json(home.worker(UID).control.read_bytes()) == limits


def test_forgetting_stops_and_removes(home, launcher, until):
    launcher.start(action(home, "hang"), nothing)
    until(lambda: launcher.forget(UID))
    assert launcher.known() == []
    assert launcher.forget(UID)
    assert launcher.observe(UID) is None


def test_the_guard_is_held_by_a_worker_that_nobody_launched(home, launcher):
    directory = home.worker(UID)
    directory.path.mkdir(parents=True)
    with atomic_file.locked(directory.lock):
        assert launcher.alive(UID)
        assert not launcher.start(action(home), nothing)
    assert not launcher.alive(UID)


def test_uids_are_no_paths(home):
    for uid in ("../x", "", "a/b", ".", "a" * 65):
        with pytest.raises(InternalError):
            home.worker(uid)


def test_limits_that_are_set_during_a_start_reach_the_worker(home, launcher, until):
    limits = Limits(bandwidth=5, connections=2)
    found = []
    setting = threading.Thread(target=lambda: found.append(launcher.limit(UID, limits)))

    def read(ref):
        # The start holds its locks, and has not removed the limits of an earlier attempt yet.
        setting.start()
        setting.join(0.5)
        return {"accessKeyId": b"me"}

    secret = ObjectRef(kind="Secret", namespace="default", name="s")
    mounts = (Mount(directory=str(home.worker(UID).inputs / "secret"), inputs=(secret,)),)
    launcher.start(action(home, "hang", mounts=mounts), read)
    setting.join(30)
    assert found == [True]
    assert Limits.from_json(home.worker(UID).control.read_bytes()) == limits


def test_logs_stay_within_their_limit(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"a" * LOG_LIMIT + b"end\n")
    with open(log, "ab") as writer:
        rotate(log, writing=True)
        assert log.stat().st_size == 0
        assert (tmp_path / "log.1").read_bytes().endswith(b"end\n")
        writer.write(b"more")
    assert log.read_bytes() == b"more"
    rotate(log)
    assert log.read_bytes() == b"more"


def test_a_killed_starter_leaves_an_attempt_that_is_lost(home, launcher):
    directory = home.worker(UID)
    directory.path.mkdir(parents=True)
    directory.attempt.write_text('{"attempt": 3, "started": 5.0}')
    assert launcher.observe(UID).outcome.failure.code == "WorkerLost"
    assert launcher.start(action(home, "hang", attempt=4), nothing)


def test_signals_do_not_reach_a_worker_through_the_terminal(home, launcher, until):
    launcher.start(action(home, "hang"), nothing)
    (pid,) = until(lambda: with_arguments("--status-dir", str(home.worker(UID).path)))
    assert os.getsid(pid) == pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: ended(launcher))
