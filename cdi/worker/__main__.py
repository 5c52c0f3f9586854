"""Command line of the worker: one job, from its file to its outcome.

``python -m cdi.worker run JOB.json --status-dir DIR`` runs a job in embedded mode; `_SUBCOMMANDS` are those of pods.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from typing import Final

from cdi.logs import configure_worker

_SUBCOMMANDS: Final = {
    "clone-source": ("cdi.worker.clone", "source"),
    "clone-target": ("cdi.worker.clone", "target"),
    "measure": ("cdi.worker.measure", "main"),
    "pod": ("cdi.worker.pod", "main"),
    "poll": ("cdi.worker.poll", "main"),
    "poll-program": ("cdi.worker.poll_program", "main"),
    "prove": ("cdi.worker.prove", "main"),
    "sign-record": ("cdi.worker.sign", "main"),
    "upload": ("cdi.worker.upload", "main"),
}
"""Module and function of each subcommand; they are imported on use, because a worker has little memory and time."""


def command(arguments: list[str]) -> int:
    """Run the program ``cdi-worker`` of the image; the default subcommand is ``pod``."""
    named = bool(arguments) and not arguments[0].startswith("--")
    return _main(arguments if named else ["pod", *arguments])


def _main(arguments: list[str]) -> int:
    atexit.register(_skip_last_collections)
    configure_worker()
    if arguments and arguments[0] in _SUBCOMMANDS:
        module, function = _SUBCOMMANDS[arguments[0]]
        status: int = getattr(importlib.import_module(module), function)(arguments[1:])
        return status
    from cdi.worker.run import main as run

    return run(arguments)


def _skip_last_collections() -> None:
    """Keep an ending process from searching its modules for garbage.

    The interpreter does so twice, which takes a seventh of the processor time of a small image.
    """
    gc.disable()
    gc.freeze()


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
