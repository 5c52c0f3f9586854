"""The ``cdi completion`` command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cdi.api.errors import UsageError
from cdi.cli.session import Session, subcommand


@subcommand("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(_: Session, *, shell: str) -> None:
    """Print a completion script: cdi completion bash > ~/.local/share/bash-completion/completions/cdi."""
    made = get_completion_class(shell)
    if made is None:
        raise UsageError(f"completion is not supported for {shell!r}")
    root = click.get_current_context().find_root().command
    click.echo(made(root, {}, "cdi", "_CDI_COMPLETE").source())
