"""A worker as the supervisor starts it, and a function that kills it at random moments until its job is done."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from cdi.api.job import Job, Outcome

MAX_KILLS = 8
"""Maximum number of kills in one import, so that a slow machine finishes as well."""


class Worker:
    """The processes of one job, one at a time, in one status directory."""

    def __init__(self, job, directory):
        self.directory = Path(directory)
        self.job = job
        self.job_path = self.directory / "job.json"
        self.job_path.write_text(job.to_json())
        self.process = None

    def start(self, prefix=()):
        self.path("outcome.json").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "cdi.worker", "run", self.job_path, "--status-dir", self.directory],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def path(self, name):
        return self.directory / name

    def outcome(self, timeout=60):
        """Wait for the running process to end, and return its outcome."""
        _, told = self.process.communicate(timeout=timeout)
        text = self.path("outcome.json").read_text()
        assert len(text.encode()) <= 4096
        outcome = Outcome.from_json(text)
        status = 0 if outcome.failure is None else outcome.failure.exit_status
        assert self.process.returncode == status, told
        return outcome

    def progress(self):
        with contextlib.suppress(FileNotFoundError):
            return json.loads(self.path("progress.json").read_text())
        return None

    def journal(self):
        with contextlib.suppress(FileNotFoundError):
            return json.loads(Path(self.job.journal).read_text())
        return None

    def wait_for(self, condition, timeout=60):
        """Wait until `condition()` is true; fail if the process ends before that."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"it ended early: {self.process.communicate()[1]}"
            assert time.monotonic() < end, "it did not come so far"
            time.sleep(0.01)

    def watermark(self):
        """Return the offset from which another process would resume."""
        return (self.journal() or {}).get("watermark", 0)

    def wait_for_checkpoint(self, before):
        """Wait until the journal is beyond the offset `before`, or the process has ended."""
        while self.process.poll() is None and self.watermark() <= before:
            time.sleep(0.01)

    def kill_after(self, seconds):
        """Send SIGKILL after this many seconds, and return whether the process was still running."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        return self.process.returncode == -signal.SIGKILL and not self.path("outcome.json").exists()

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stderr.close()


def kill_and_restart(make_job, tmp_path, *, kills, longest, check, seed=None):
    """Run imports one after another, kill their workers `kills` times in all, and return their outcomes.

    Args:
        make_job: returns the job for a number and a directory.
        check: called with the worker and the outcome after each kill (with None) and at each end.
        longest: maximum seconds from a start to a kill.
    """
    seed = random.randrange(1 << 32) if seed is None else seed
    print(f"seed {seed}")
    rng = random.Random(seed)
    done, outcomes = 0, []
    while done < kills:
        directory = tmp_path / f"import-{len(outcomes)}"
        directory.mkdir()
        worker = Worker(make_job(len(outcomes), directory), directory)
        here = 0
        try:
            while True:
                before = worker.watermark()
                worker.start()
                if here < MAX_KILLS and done < kills:
                    if here % 3 == 2:
                        # On a busy machine no process would come as far as a checkpoint in so little time.
                        worker.wait_for_checkpoint(before)
                    if worker.kill_after(rng.uniform(0.05, longest)):
                        here += 1
                        done += 1
                        check(worker, None)
                        continue
                    outcome = Outcome.from_json(worker.path("outcome.json").read_text())
                else:
                    outcome = worker.outcome()
                break
            assert outcome.failure is None, outcome.failure
            check(worker, outcome)
            outcomes.append(outcome)
        finally:
            worker.close()
        Path(worker.job.target.path).unlink()
    print(f"{done} kills in {len(outcomes)} imports, resumed at {[o.resumed_at for o in outcomes]}")
    return outcomes


def disk_job(name, url, directory, **policy):
    """Return an HTTP import onto a disk file, with a journal."""
    from cdi.api.job import FileTargetSpec, HttpSourceSpec, Policy

    checksum = policy.pop("checksum", None)
    return Job(
        id=name,
        source=HttpSourceSpec(url=url),
        target=FileTargetSpec(path=str(directory / "disk.img")),
        checksum=checksum,
        journal=str(directory / "journal"),
        policy=Policy(**{"discover_checksum": False} | policy),
    )
