"""The ``cdi boot-check`` command."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from cdi.api.errors import NotFound, TargetUnsuitable, UsageError
from cdi.api.quantity import Quantity
from cdi.boot.check import boot_check
from cdi.boot.watcher import BootReport
from cdi.cli.elapsed import Elapsed
from cdi.cli.options import duration, quantity
from cdi.cli.session import Session, subcommand
from cdi.cli.show import paint, printable


@subcommand("boot-check")
@click.argument("volume")
@click.option(
    "--timeout",
    type=duration,
    help="Fail if the guest has not booted after this time, e.g. 90s; default: 5m with KVM, 20m under emulation.",
)
@click.option("--memory", type=quantity, default="1Gi", show_default=True, help="Set the memory of the guest.")
@click.option("--firmware", type=click.Choice(["auto", "bios", "uefi"]), default="auto", show_default=True)
@click.option("--uefi", is_flag=True, help="Same as --firmware uefi.")
@click.option("--expect", help="Pass only if a line of the serial console matches this regular expression.")
@click.option(
    "--seed",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Use the NoCloud seed files in this directory (user-data, meta-data, network-config, vendor-data).",
)
@click.option("--tcg/--no-tcg", default=True, show_default=True, help="Emulate the processor if KVM is not available.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Same as --output json.")
def command(
    session: Session,
    *,
    volume: str,
    timeout: float | None,
    memory: str,
    firmware: str,
    uefi: bool,
    expect: str | None,
    seed: Path | None,
    tcg: bool,
    output: str,
    as_json: bool,
) -> None:
    """Boot VOLUME (the name of a volume, or the path of a raw disk) and report whether it booted.

    The guest writes to a temporary overlay; the volume is only read.  QMP and the serial console show the state of the
    guest; the console's last line is printed with the elapsed seconds on standard error.  Exits 0 if the guest booted,
    9 if not.
    """
    session.here("cdi boot-check", "start a virtual machine from the volume")
    path = _disk(session, volume)
    files = _seed(seed)
    if uefi and firmware == "bios":
        raise UsageError("--uefi and --firmware bios exclude each other", remedy="omit one of them")
    session.after_interrupt = "nothing; the guest and its overlay were removed, and the volume was only read"
    try:
        with Elapsed(f"{printable(volume)}: booting") as elapsed:
            report = boot_check(
                str(path),
                memory=Quantity.parse(memory).bytes,
                timeout=timeout,
                firmware="uefi" if uefi else firmware,  # type: ignore[arg-type]  # click's choice is one of them
                seed=files,
                expect=expect,
                tcg=tcg,
                on_line=elapsed.note,
            )
    except ValueError as error:
        raise UsageError(str(error), remedy="cdi boot-check --help") from error
    if as_json or output == "json":
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        _tell(volume, report)
    report.require(where=volume)


def _disk(session: Session, volume: str) -> Path:
    """Return the path of the raw disk: `volume` itself if it looks like a path, else the disk of that volume."""
    path = Path(volume).expanduser()
    if os.sep in volume and not volume.startswith(("dv/", "pvc/")):
        if not path.exists():
            raise NotFound("the disk does not exist", where=volume, remedy="check the path")
    else:
        name = volume.rpartition("/")[2]
        try:
            path = session.embedded.volume_path(session.namespace, name)
        except NotFound:
            if not path.is_file():
                raise
    if path.is_dir():
        raise TargetUnsuitable(
            "the volume contains the files of an archive, not a disk", where=volume, remedy="name another volume"
        )
    return path


def _seed(directory: Path | None) -> dict[str, str] | None:
    if directory is None:
        return None
    try:
        return {one.name: one.read_text() for one in sorted(directory.iterdir()) if one.is_file()}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the seed: {error}", where=str(directory)) from error


def _tell(volume: str, report: BootReport) -> None:
    how = f"{report.accelerator}, {report.firmware}, {report.seconds:.1f}s"
    if report.booted:
        click.echo(f"{volume}: {paint('booted', 'green')} ({how}): {printable(report.evidence or '')}")
        return
    click.echo(f"{volume}: {paint('did not boot', 'red')} ({how})")
    if report.serial_tail:
        click.echo("last lines of the serial console:")
        for line in report.serial_tail.splitlines()[-20:]:
            click.echo(f"  | {printable(line)}")
