"""A worker by hand: one job, from its file to its outcome.

``python -m cdi.worker run JOB.json --status-dir DIR`` as the embedded mode runs it, ``python -m cdi.worker pod`` as
in a pod, ``clone-source`` and ``clone-target`` as in the two pods of a clone, ``upload`` as in an upload server's,
``measure`` as in one that looks how large a source's disk is.
"""

from __future__ import annotations

import sys


def command(arguments: list[str]) -> int:
    """The program ``cdi-worker`` of the image: a pod's work, an import unless another is named first."""
    named = bool(arguments) and not arguments[0].startswith("--")
    return _main(arguments if named else ["pod", *arguments])


def _main(arguments: list[str]) -> int:
    if arguments[:1] == ["pod"]:
        from cdi.worker.pod import main as pod

        return pod(arguments[1:])
    if arguments[:1] == ["clone-source"]:
        from cdi.worker.clone import source

        return source(arguments[1:])
    if arguments[:1] == ["clone-target"]:
        from cdi.worker.clone import target

        return target(arguments[1:])
    if arguments[:1] == ["measure"]:
        from cdi.worker.measure import main as measure

        return measure(arguments[1:])
    if arguments[:1] == ["upload"]:
        from cdi.worker.upload import main as upload

        return upload(arguments[1:])
    from cdi.worker.run import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
