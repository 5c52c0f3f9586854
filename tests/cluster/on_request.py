"""Hooks of tests that are collected only when their directory is named, and what they bring up before the first test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.layout import ClusterError, Layout
from tests.cluster.lifecycle import Say


def is_requested(config: pytest.Config, directory: Path) -> bool:
    """Return whether the command line names the directory or something in it."""
    named = [Path(config.invocation_params.dir, each.partition("::")[0]).resolve() for each in config.args]
    return any(each == directory or directory in each.parents for each in named)


def bring_up(session: pytest.Session, directory: Path, name: str, up: Callable[[Layout, Say], bool]) -> None:
    """Bring up what the tests of a directory run on, if they are requested.

    This happens in the first process and before any test's timeout starts, because the first build takes long. Nothing
    happens if CDI_TEST_KUBECONFIG names a cluster.

    Args:
        session: The session, which is ended if the cluster does not come up.
        directory: The directory of the tests.
        name: Name of the tests in messages.
        up: Function that returns whether it started the cluster, or raises ClusterError.
    """
    config = session.config
    if hasattr(config, "workerinput") or config.option.collectonly or "CDI_TEST_KUBECONFIG" in os.environ:
        return
    if not is_requested(config, directory):
        return
    began = time.monotonic()
    try:
        started = up(Layout.default(), lambda text: print(f"{name}: {text}", flush=True))
    except ClusterError as error:
        pytest.exit(f"{name}: {error}", returncode=1)
    print(f"{name}: up after {time.monotonic() - began:.0f} s" if started else f"{name}: was up", flush=True)
