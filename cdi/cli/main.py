"""The ``cdi`` command: its subcommands, error output and exit status.

A command's module is imported only when the command is run, so that ``cdi get`` does not load what ``cdi boot-check``
needs. Every failure is one line on standard error and an exit status (docs/reference/cli.md); a traceback is shown only
with ``--debug``.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Never

import click

from cdi.api.errors import CdiError, InternalError, Interrupted, OutputClosed, UsageError
from cdi.cli import streams
from cdi.cli.lazy import Entry, LazyGroup
from cdi.cli.session import Session, common_options
from cdi.cli.show import paint, printable

SECTIONS: dict[str, dict[str, Entry]] = {
    "Examine images": {
        "inspect": Entry("inspect", "Report what an image is, and whether it is safe."),
        "explain": Entry("explain", "Predict an import: will it succeed, by which pipeline, at what cost."),
    },
    "Create volumes": {
        "import": Entry("import_", "Import one image from a URL, a file or standard input."),
        "upload": Entry("upload", "Create a volume from a local file or standard input."),
        "clone": Entry("clone", "Clone a volume."),
        "batch": Entry("batch", "Import many images, pinned by a lock file."),
        "bundle": Entry("bundle", "Carry golden images to machines and clusters without a network."),
        "serve": Entry("serve", "Serve a web page and uploads for this machine's volumes."),
        "boot-check": Entry("boot_check", "Boot a volume on a temporary overlay, and report whether it booted."),
    },
    "Keep golden images": {
        "golden": Entry("golden", "Poll, verify, offer, roll back and retire the versions of golden images."),
    },
    "Manage objects": {
        "apply": Entry("apply", "Apply manifests: DataVolumes, DataSources, secrets …"),
        "get": Entry("get", "List objects."),
        "describe": Entry("describe", "Print details of an object: conditions, events, progress, outcome."),
        "wait": Entry("wait", "Wait for a DataVolume, with a progress bar."),
        "logs": Entry("logs", "Print the logs of a DataVolume's worker."),
        "limit": Entry("limit", "Limit bandwidth and connections, also of a running import."),
        "delete": Entry("delete", "Delete objects and their volumes."),
    },
    "Run in a cluster": {
        "controller": Entry("controller", "Run the controller, which fills the volumes of a cluster."),
        "apiserver": Entry("apiserver", "Serve the admission webhooks."),
        "uploadproxy": Entry("uploadproxy", "Forward uploads to the volumes of a cluster."),
    },
    "Other": {
        "version": Entry("version", "Print the version of cdi and of the tools it uses."),
        "completion": Entry("completion", "Print a completion script for bash, zsh or fish."),
    },
}


@click.group(
    cls=LazyGroup,
    sections=SECTIONS,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@common_options
@click.version_option(package_name="cdi", message="%(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Import virtual machine images into volumes, as verified golden images.

    Volumes and objects of this machine are stored in CDI_HOME (default: ~/.local/share/cdi).  With --context,
    --kubeconfig or --cluster the commands act on a cluster instead.
    """
    context.ensure_object(Session)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> Never:
    """Run a command and exit with its status."""
    streams.prepare()
    sys.exit(run(arguments))


def kubectl(arguments: Sequence[str] | None = None) -> Never:
    """Run as ``kubectl cdi``: against the cluster of the current context, unless ``--home`` is given."""
    streams.prepare()
    sys.exit(run(arguments, Session("kubectl cdi", cluster=True)))


def run(arguments: Sequence[str] | None = None, session: Session | None = None) -> int:
    """Run a command and return its exit status."""
    session = session or Session()
    try:
        result = cli.main(
            None if arguments is None else list(arguments),
            prog_name=session.program,
            standalone_mode=False,
            obj=session,
        )
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except OutputClosed as gone:
        # The status of a program that SIGPIPE ends: the reader closed the pipe because it had read enough.
        return gone.exit_status
    except click.ClickException as refused:
        return _fail(_usage(refused), session)
    except (click.Abort, KeyboardInterrupt):
        return _fail(Interrupted("interrupted", remedy=session.after_interrupt), session)
    except CdiError as error:
        return _fail(error, session)
    except Exception as error:  # noqa: BLE001 (the last resort: whatever happens, one line)
        defect = InternalError(
            f"{type(error).__name__}: {error}", remedy="run the command again with --debug, and report the traceback"
        )
        return _fail(defect, session, cause=error)
    finally:
        session.close()
    return result if isinstance(result, int) else 0


def _usage(refused: click.ClickException) -> CdiError:
    """Convert click's error about an argument to a `UsageError`."""
    context = getattr(refused, "ctx", None)
    remedy = f"{context.command_path} --help" if context is not None else None
    message = " ".join(refused.format_message().split())
    return UsageError(message.rstrip("."), remedy=remedy)


def _fail(error: CdiError, session: Session, *, cause: Exception | None = None) -> int:
    if session.debug:
        traceback.print_exception(cause or error)
    head, colon, rest = printable(str(error)).partition(": ")
    click.echo(f"{paint(head, 'red', err=True)}{colon}{rest}", err=True)
    return error.exit_status


if __name__ == "__main__":
    main()
