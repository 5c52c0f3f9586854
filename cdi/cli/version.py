"""The ``cdi version`` command."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from dataclasses import asdict
from importlib.metadata import version

import click

from cdi.cli.session import Session, subcommand
from cdi.cli.show import printable

_TOOLS = {
    "qemu-img": "boot checks, bundles",
    "qemu-storage-daemon": "images without a map of their own",
    "gpgv": "signatures",
}


@subcommand("version")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(session: Session, *, output: str) -> None:
    """Print the version of cdi and of the tools it uses; for a cluster, that of its components."""
    if session.in_cluster:
        _of_cluster(session, output)
        return
    from cdi.transfer.qemu.sandbox import probe_protections

    found, sandbox = {name: _tool(name) for name in _TOOLS}, probe_protections()
    if output == "json":
        own = {"cdi": version("cdi"), "python": platform.python_version()}
        click.echo(json.dumps({**own, "tools": found, "sandbox": sandbox}, indent=2))
        return
    click.echo(f"cdi {version('cdi')} (Python {platform.python_version()})")
    for name, told in found.items():
        click.echo(f"{name}: {told or 'missing'} ({_TOOLS[name]})")
    click.echo(f"sandbox: {', '.join(sandbox) or 'none'} (isolates the programs that decode images)")


def _of_cluster(session: Session, output: str) -> None:
    from cdi.remote.versions import find_versions

    found = find_versions(session.remote.calls)
    own = {"cdi": version("cdi"), "python": platform.python_version()}
    if output == "json":
        click.echo(json.dumps({**own, "server": asdict(found)}, indent=2))
        return
    click.echo(f"cdi {own['cdi']} (Python {own['python']})")
    click.echo(printable(f"Kubernetes: {found.kubernetes} at {found.server}"))
    click.echo(printable(f"cdi.kubevirt.io: {', '.join(found.api_versions) or 'not installed'}"))
    for part in found.parts:
        click.echo(printable(f"{part.name}: {part.version} ({part.detail})"))
    if found.unknown:
        click.echo(printable(f"controller: unknown ({found.unknown})"))


def _tool(name: str) -> str | None:
    """Return the first line of a tool's ``--version``, None if it is not installed."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "does not respond"
    return (said.stdout.strip().splitlines() or ["unknown version"])[0]
