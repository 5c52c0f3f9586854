"""A worker by hand: one job, from its file to its outcome.

``python -m cdi.worker run JOB.json --status-dir DIR`` as the embedded mode runs it, ``python -m cdi.worker pod`` as
in a pod.
"""

from __future__ import annotations

import sys


def _main(arguments: list[str]) -> int:
    if arguments[:1] == ["pod"]:
        from cdi.worker.pod import main as pod

        return pod(arguments[1:])
    from cdi.worker.run import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
