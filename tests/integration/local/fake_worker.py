"""A worker that behaves as the last part of its URL says; the launcher starts it as a module."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

from cdi.api.errors import by_code
from cdi.api.job import Failure, Job, Outcome, Progress


def main() -> int:
    directory = Path(sys.argv[4])
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    job = Job.from_json(Path(sys.argv[2]).read_bytes())
    url = getattr(job.source, "url", "")
    deed = url.rpartition("/")[2]
    put(directory / "progress.json", Progress(phase="transferring", done=10, total=100).to_json())
    print("working on", url, file=sys.stderr)
    put(directory / "environment.json", json.dumps(dict(os.environ)))
    match deed:
        case "hang":
            time.sleep(300)
        case "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("ready", file=sys.stderr)
            time.sleep(300)
        case "die":
            print("my last line", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGKILL)
        case "die-once":
            if not (directory / "died").exists():
                (directory / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case "nonsense":
            put(directory / "outcome.json", '{"id": 5}')
            return 0
        case "slow":
            time.sleep(0.5)
        case _:
            pass
    failure = None
    if deed.startswith("fail-"):
        error = by_code(deed.removeprefix("fail-"))("as requested")
        failure = Failure(code=error.code, message=error.message, retry=error.retry, exit_status=error.exit_status)
    else:
        content = b"x" * 4096
        if job.source.kind == "stream":
            content = sys.stdin.buffer.read()
        path = Path(getattr(job.target, "path", ""))
        path.write_bytes(content)
        os.truncate(path, job.size or len(content))
        put(directory / "progress.json", Progress(phase="done", done=100, total=100).to_json())
    put(directory / "outcome.json", Outcome(id=job.id, failure=failure, disk_size=job.size).to_json())
    return 0 if failure is None else failure.exit_status


def put(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    sys.exit(main())
