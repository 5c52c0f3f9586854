"""Shared parts of the fuzz targets: seeds in a directory, and a run that ends with a status."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris


def run(target: Callable[[bytes], None], seeds: Iterable[bytes], max_len: int, *, fixed: int) -> None:
    """Fuzz until a flag such as ``-max_total_time=60`` ends it, or something other than a `CdiError` gets out.

    Arguments are libFuzzer's; a directory among them collects what was found beside the seeds. ``--fixed`` runs
    `fixed` inputs, about ten seconds of them, which are the same on every machine: a limit in time would let a faster
    machine get further.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        for seed in seeds:
            if len(seed) <= max_len:
                (Path(directory) / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
        own = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        flags = [argument for argument in sys.argv[1:] if argument.startswith("-")]
        if "--fixed" in flags:
            flags = [flag for flag in flags if flag != "--fixed"] + ["-seed=1", f"-runs={fixed}"]
        # A crash is printed with its input; files of it go where the caller says with -artifact_prefix.
        if not any(flag.startswith("-max_len") for flag in flags):
            flags.append(f"-max_len={max_len}")
        if not any(flag.startswith("-artifact_prefix") for flag in flags):
            flags.append(f"-artifact_prefix={directory}/")
        atheris.Setup([sys.argv[0], *flags, *own, directory], target)
        atheris.Fuzz()
