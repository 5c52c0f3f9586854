"""Run many commands in one process: ``python -m tests.integration.cli.walker`` with their arguments in JSON as input.

Starting an interpreter takes longer than most commands. Their output and exit statuses are printed in JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys

from cdi.cli.main import run


def main() -> None:
    task = json.load(sys.stdin)
    if task["gone"]:
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir(os.getcwd())
    ended = []
    for arguments in task["commands"]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(arguments)
        ended.append({"status": status, "out": out.getvalue(), "err": err.getvalue()})
    json.dump(ended, sys.stdout)


if __name__ == "__main__":
    main()
