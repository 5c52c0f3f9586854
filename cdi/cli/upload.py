"""``cdi upload``."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import click

from cdi.api.errors import InvalidManifest, NotFound, UsageError
from cdi.cli.options import duration, quantity
from cdi.cli.session import Session, one_datavolume, subcommand
from cdi.cli.wait import wait_for


@subcommand("upload")
@click.argument("file")
@click.argument("name")
@click.option("--size", type=quantity, help="Of the volume, e.g. 20Gi; unless given, what the image needs.")
@click.option("--content-type", type=click.Choice(["kubevirt", "archive"]), default="kubevirt", show_default=True)
@click.option("--no-create", is_flag=True, help="The DataVolume must be there and wait for an upload.")
@click.option("--wait/--no-wait", "waits", default=True, show_default=True)
@click.option("--timeout", type=duration, help="How long to wait at most; for ever unless given.")
def command(
    session: Session,
    *,
    file: str,
    name: str,
    size: str | None,
    content_type: str,
    no_create: bool,
    waits: bool,
    timeout: float | None,
) -> None:
    """Make volume NAME of FILE, or of standard input (-).

    A DataVolume NAME that waits for an upload takes it; else one is made.  Of a pipe, nobody knows the image's size
    beforehand: then --size is needed.
    """
    name = one_datavolume(name)
    session.here("cdi upload", "virtctl image-upload, or serve the file over HTTP and cdi import its URL")
    if not _exists(session, name):
        if no_create:
            raise NotFound(
                f"there is no datavolume {session.namespace}/{name}", remedy="apply it, or leave --no-create out"
            )
        session.embedded.apply([_manifest(session.namespace, name, size or _needed(file, content_type), content_type)])
    elif size is not None:
        raise UsageError(
            "the DataVolume is there already, and has its size",
            where=f"{session.namespace}/{name}",
            remedy="leave --size out, or choose another name",
        )
    if file == "-":
        session.embedded.upload_stream(session.namespace, name, sys.stdin.fileno(), _length())
    else:
        session.embedded.upload(session.namespace, name, Path(file))
    if waits:
        wait_for(session, session.namespace, name, timeout=timeout)
    else:
        click.echo(f"datavolume/{name} is being uploaded to")


def _exists(session: Session, name: str) -> bool:
    try:
        body = session.embedded.get("dv", session.namespace, name)
    except NotFound:
        return False
    if "upload" not in (body["spec"].get("source") or {}):
        raise InvalidManifest(
            "the DataVolume has another source than an upload",
            where=f"{session.namespace}/{name}",
            remedy="choose another name",
        )
    return True


def _needed(file: str, content_type: str) -> str:
    """The size that the image needs, as a quantity; raises its refusal."""
    from cdi.image.sizes import MEBI, request
    from cdi.runtime.inspect import inspect
    from cdi.runtime.locate import locate
    from cdi.runtime.request import Request

    if file == "-" or content_type == "archive":
        what = "a pipe's image" if file == "-" else "an archive"
        raise UsageError(f"the size of {what} is not known beforehand", remedy="give --size")
    found = inspect(Request(place=locate(os.path.abspath(file))), whole=True)
    if found.refusal is not None:
        raise found.refusal
    if found.virtual_size is None:
        raise UsageError("the image does not tell its size", where=file, remedy="give --size")
    return request(max(found.virtual_size, MEBI))


def _length() -> int | None:
    """Of standard input where it is a file that nothing was read of."""
    descriptor = sys.stdin.fileno()
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        return None
    return max(0, info.st_size - os.lseek(descriptor, 0, os.SEEK_CUR))


def _manifest(namespace: str, name: str, size: str, content_type: str) -> dict[str, Any]:
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "source": {"upload": {}},
            "contentType": content_type,
            "storage": {"resources": {"requests": {"storage": size}}},
        },
    }
