"""Kill point test: a controller that is killed at every step once.

    python -m tests.cluster.kill_points DIRECTORY controller …

It is killed right after each write that differs from all earlier ones, and restarted, so every gap between two writes
is tested. The steps seen so far are stored in the directory. Events are not counted: repeating one is not a step. A
restart costs only a fork, because everything is imported beforehand.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import cdi.cli.controller
import cdi.controller.main
import cdi.kube.credentials  # noqa: F401  here, not in each child
from cdi.api.kinds import EVENTS, Resource
from cdi.cli.main import main
from cdi.kube.client import Client

DIED = 99
_PR_SET_PDEATHSIG = 1


def step_of(verb: str, resource: Resource, arguments: tuple[Any, ...]) -> str:
    """Describe a write by its object and the fields it sets, without uids and counters."""
    body: Any = next((each for each in arguments if isinstance(each, dict)), {})
    name = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], str) else body["metadata"]["name"]
    metadata, status = body.get("metadata") or {}, body.get("status") or {}
    annotations = metadata.get("annotations") or {}
    said = [each.get("reason", "") for each in status.get("conditions") or []] if isinstance(status, dict) else []
    if isinstance(status, dict):  # of a DataImportCron
        said += [f"{each['name']} {each['state']}" for each in status.get("versions") or []]
    phase = annotations.get("cdi.kubevirt.io/storage.pod.phase", "")
    parts = [verb, str(resource), name, *sorted(body), *sorted(annotations), phase, status.get("phase", ""), *said]
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UID", " ".join(parts))


def after_writes(then: Callable[[str], Awaitable[None]]) -> None:
    """Call `then` with the description of every write except Events."""

    def followed(write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(write)
        async def whole(client: Client, resource: Resource, *arguments: Any, **more: Any) -> Any:
            answer = await write(client, resource, *arguments, **more)
            if resource != EVENTS:
                await then(step_of(write.__name__, resource, arguments))
            return answer

        return whole

    for name in ("create", "update", "patch", "delete"):
        setattr(Client, name, followed(getattr(Client, name)))


def _die_once_after_each(known: Path) -> None:
    survived = set(known.read_text().splitlines())

    async def last(step: str) -> None:
        if step not in survived:
            with known.open("a") as file:
                file.write(f"{step}\n")
            say("died", after=step)
            os._exit(DIED)  # no handler runs, no buffer is flushed, no connection is closed

    after_writes(last)


def say(message: str, **more: str) -> None:
    """Write a line to the controller's log."""
    os.write(1, json.dumps({"message": message, **more}).encode() + b"\n")


def _live(known: Path, arguments: list[str]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _die_once_after_each(known)
    sys.argv[1:] = arguments
    main()


def _again_and_again(known: Path, arguments: list[str]) -> int:
    """Restart the controller until it ends in any other way, and return that exit status."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _live(known, arguments)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != DIED:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    steps = Path(sys.argv[1]) / "steps"
    steps.touch()
    sys.exit(_again_and_again(steps, sys.argv[2:]))
