"""Debian systems built from packages, from the archives that this machine's apt uses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from cdi.cli.elapsed import Elapsed

__all__ = ["Elapsed", "apt_settings", "bootstrap", "run", "sources"]

DEFAULT_SUITE = "bookworm"

# Documentation and translations are half of a small system.
DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)


def run(*command: str, stdin: str | None = None) -> str:
    """Return the command's output.

    Raises:
        SystemExit: it failed; the message is the end of its error output.
    """
    with Elapsed(Path(command[0]).name):
        done = subprocess.run(command, check=False, input=stdin or "", capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).splitlines()[-15:])
        name = Path(sys.argv[0]).name
        raise SystemExit(f"{name}: {' '.join(command[:3])} … ended with status {done.returncode}:\n{tail}")
    return done.stdout


def sources(suite: str | None = None) -> tuple[str, list[str]]:
    """Return the suite, and apt source lines for Debian's own archives as this machine's apt is configured.

    If a `suite` other than this machine's is named, the lines are for that one. Third-party archives are left out.
    There are no lines if this machine is not Debian; mmdebstrap's default applies then.
    """
    wanted = "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"
    rows: list[list[str]] = []
    for attempt in range(2):
        listing = run("apt-get", "indextargets", "--format", wanted, "Created-By: Packages")
        rows = [line.split("|") for line in listing.splitlines()]
        rows = [row for row in rows if len(row) == 6 and row[0].startswith("Debian") and row[4] == "main"]
        if rows or attempt:
            break
        run("apt-get", "-qq", "update")  # container images have no package lists, and so no origins
    codenames = [row[1] for row in rows]
    own = next((name for name in codenames if name.isalpha()), None)
    if own is None:
        return suite or DEFAULT_SUITE, []
    suite = suite or own
    lines = []
    for _, _, uri, release, component, signed_by in rows:
        key = signed_by if signed_by.startswith("/") else ""
        line = f"deb {f'[signed-by={key}] ' if key else ''}{uri} {release.replace(own, suite)} {component}"
        if line not in lines:
            lines.append(line)
    return suite, lines


APT_SETTINGS = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-")


def apt_settings() -> list[str]:
    """Return apt's settings for access to its archives (proxy, certificates, retries, dates) in apt.conf format."""
    kept = []
    for line in run("apt-config", "dump").splitlines():
        name = line.split(" ", 1)[0]
        if name.startswith(APT_SETTINGS) and not name.endswith("::"):
            kept.append(line)
    return kept


def bootstrap(target: Path, packages: Iterable[str], *, kind: str, suite: str | None = None) -> None:
    """Install these packages, and what they depend on, into a directory or a tar (`kind`).

    The suite is this machine's own unless another is named; nothing of `apt_settings` is left in it. Needs root.
    """
    suite, lines = sources(suite)
    command = ["mmdebstrap", "--mode=root", "--variant=apt", f"--format={kind}", "--skip=output/dev"]
    command += [f"--include={','.join(packages)}", *(f"--aptopt={setting}" for setting in apt_settings())]
    command += [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    command += [suite, str(target)]
    if lines:
        command.append("-")
    run(*command, stdin="\n".join(lines) + "\n" if lines else None)
