"""The ``cdi golden`` group of commands."""

from __future__ import annotations

import click

from cdi.cli.lazy import Entry, LazyGroup
from cdi.cli.session import common_options

SECTIONS: dict[str, dict[str, Entry]] = {
    "See": {
        "list": Entry("golden_show", "List golden images: current and wanted version, next poll, obstacles.", "list_"),
        "describe": Entry("golden_show", "Print all versions of a golden image and what became of them.", "describe"),
        "history": Entry("golden_show", "Print the versions of a golden image with their times.", "history"),
    },
    "Keep up to date": {
        "add": Entry("golden_add", "Create a DataImportCron for a URL or registry reference.", "add"),
        "poll": Entry("golden_poll", "Ask the source for a new version now.", "poll"),
        "wait": Entry("golden_poll", "Wait until the newest version is offered, or cannot be.", "wait"),
        "run": Entry("golden_poll", "Keep the schedules of this machine.", "run"),
        "hold": Entry("golden_control", "Stop importing and offering new versions.", "hold"),
        "unhold": Entry("golden_control", "End a hold.", "unhold"),
    },
    "Choose what is offered": {
        "pin": Entry("golden_control", "Offer one version until it is unpinned.", "pin"),
        "unpin": Entry("golden_control", "End a pin: offer the newest version again.", "unpin"),
        "rollback": Entry("golden_control", "Return to an earlier version, and withhold newer ones.", "rollback"),
        "release": Entry("golden_control", "Offer withheld versions again.", "release"),
        "promote": Entry("golden_control", "Make a channel offer a version.", "promote"),
    },
    "Retire versions": {
        "revoke": Entry("golden_control", "Withdraw a version from every DataSource for good.", "revoke"),
        "deprecate": Entry("golden_control", "Set from when on clones of a version are warned.", "deprecate"),
        "retry": Entry("golden_control", "Import or prove a failed version again.", "retry"),
    },
}


@click.group("golden", cls=LazyGroup, sections=SECTIONS, subcommand_metavar="COMMAND [ARGS]...")
@common_options
def command() -> None:
    """Keep golden images up to date: each is a DataImportCron that polls a source.

    A version that a poll finds is imported, verified, proven if asked for, and then offered by the DataSource from
    which machines are cloned.
    """
