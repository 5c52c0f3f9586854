"""Fresh machines that are tested, and the commands that run on each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Command in the checkout, without a terminal."""

    command: tuple[str, ...]
    refusal: str | None = None
    """How the last line ends, where it cannot succeed."""
    offline: bool = False
    """Without any network but the loopback interface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Machine and user."""

    name: str
    suite: Literal["bookworm", "trixie"]
    user: str = "root"
    home: str | None = None
    """Made for a user; None leaves HOME unset."""
    sudo: Literal["freely", "password", "no"] = "no"
    checkout: str
    cache: str | None = None
    """CDI_CACHE, where it is not the default."""
    tmpfs: bool = False
    """/tmp is a tmpfs, as on Debian from 13 on."""
    steps: tuple[Step, ...]


EVERYTHING = (
    Step(command=("scripts/quickstart",)),
    Step(command=("scripts/test", "check")),
    Step(command=("scripts/test", "unit")),
    Step(command=("scripts/test", "fuzz", "1")),
    Step(command=("scripts/setup", "cluster")),
)

CASES = (
    Case(
        name="bookworm-root",
        suite="bookworm",
        checkout="/srv/cdi",
        steps=EVERYTHING,
    ),
    Case(
        name="bookworm-user",
        suite="bookworm",
        user="somebody",
        home="/home/somebody",
        sudo="freely",
        checkout="/home/somebody/cdi",
        steps=EVERYTHING,
    ),
    Case(
        name="trixie-root",
        suite="trixie",
        home="/root",
        checkout="/root/cdi",
        cache="/root/a cache",
        tmpfs=True,
        steps=(*EVERYTHING, Step(command=("scripts/quickstart",), offline=True)),
    ),
    Case(
        name="trixie-user",
        suite="trixie",
        user="somebody",
        home="/home/some body",
        sudo="freely",
        checkout="/home/some body/a checkout",
        tmpfs=True,
        steps=EVERYTHING,
    ),
    Case(
        name="sudo-with-password",
        suite="trixie",
        user="somebody",
        home="/home/somebody",
        sudo="password",
        checkout="/home/somebody/cdi",
        tmpfs=True,
        steps=(
            Step(
                command=("scripts/quickstart",),
                refusal="sudo wants a password, which needs a terminal; run: "
                "sudo /home/somebody/cdi/scripts/setup --packages runtime",
            ),
        ),
    ),
    Case(
        name="no-sudo",
        suite="bookworm",
        user="somebody",
        home="/home/somebody",
        checkout="/home/somebody/cdi",
        steps=(
            Step(
                command=("scripts/quickstart",),
                refusal="there is no sudo here; as root, run: /home/somebody/cdi/scripts/setup --packages runtime",
            ),
        ),
    ),
)
