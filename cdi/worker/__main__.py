"""Command line of the worker: one job, from its file to its outcome.

``python -m cdi.worker run JOB.json --status-dir DIR`` runs a job in embedded mode, ``python -m cdi.worker pod`` in a
pod, ``clone-source`` and ``clone-target`` in the two pods of a clone, ``upload`` in an upload server's pod,
``measure`` in a size-detection pod, ``poll`` where a DataImportCron's source is polled, and ``prove`` where a virtual
machine is booted from a golden image.
"""

from __future__ import annotations

import sys


def command(arguments: list[str]) -> int:
    """Run the program ``cdi-worker`` of the image; the default subcommand is ``pod``."""
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
    if arguments[:1] == ["poll"]:
        from cdi.worker.poll import main as poll

        return poll(arguments[1:])
    if arguments[:1] == ["prove"]:
        from cdi.worker.prove import main as prove

        return prove(arguments[1:])
    if arguments[:1] == ["upload"]:
        from cdi.worker.upload import main as upload

        return upload(arguments[1:])
    from cdi.worker.run import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
