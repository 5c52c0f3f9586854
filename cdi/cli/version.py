"""``cdi version``."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from importlib.metadata import version

import click

from cdi.cli.session import Session, subcommand

_TOOLS = {
    "qemu-img": "conversions, vmdk, vdi, vhd, vhdx",
    "qemu-storage-daemon": "the same, reading the source in place",
    "gpgv": "signatures",
    "bwrap": "the decoders' sandbox",
}


@subcommand("version")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(_: Session, *, output: str) -> None:
    """The version of cdi and of the tools it uses, and which of them are missing."""
    found = {name: _tool(name) for name in _TOOLS}
    if output == "json":
        click.echo(json.dumps({"cdi": version("cdi"), "python": platform.python_version(), "tools": found}, indent=2))
        return
    click.echo(f"cdi {version('cdi')} (Python {platform.python_version()})")
    for name, told in found.items():
        click.echo(f"{name}: {told or 'missing'} ({_TOOLS[name]})")


def _tool(name: str) -> str | None:
    """The first line that it says of its version, None where it is not installed."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "does not answer"
    return (said.stdout.strip().splitlines() or ["does not tell its version"])[0]
