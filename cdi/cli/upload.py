"""The ``cdi upload`` command."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from cdi.api.errors import InvalidManifest, NotFound, UsageError
from cdi.api.kinds import DATA_VOLUMES
from cdi.api.names import ANN_IMMEDIATE_BINDING
from cdi.cli.options import duration, quantity
from cdi.cli.session import Session, one_datavolume, subcommand
from cdi.cli.show import printable
from cdi.cli.streams import require_input
from cdi.cli.wait import wait_for

if TYPE_CHECKING:
    from tqdm import tqdm

    from cdi.store.base import Object


@subcommand("upload")
@click.argument("file")
@click.argument("name", required=False)
@click.option("--dv", "dv", metavar="NAME", help="Same as NAME.")
@click.option("--size", type=quantity, help="Set the size of the volume, e.g. 20Gi; default: the image's virtual size.")
@click.option("--content-type", type=click.Choice(["kubevirt", "archive"]), default="kubevirt", show_default=True)
@click.option("--storage-class", help="Set the StorageClass of a new volume; default: the cluster's.")
@click.option("--access-mode", help="Set the access mode of a new volume, e.g. ReadWriteOnce; default: the storage's.")
@click.option("--volume-mode", type=click.Choice(["Filesystem", "Block"]), help="Set the volume mode of a new volume.")
@click.option("--force-bind", is_flag=True, help="In a cluster: bind the volume without a first consumer.")
@click.option(
    "--uploadproxy-url", metavar="URL", help="In a cluster: use this upload proxy; default: the one in CDIConfig."
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="In a cluster: trust the CA certificates (PEM) in FILE for the upload proxy.",
)
@click.option("--insecure", is_flag=True, help="In a cluster: skip verification of the upload proxy's certificate.")
@click.option("--no-create", is_flag=True, help="Fail if the DataVolume does not exist.")
@click.option("--wait/--no-wait", "waits", default=True, show_default=True)
@click.option("--timeout", type=duration, help="Wait at most this long; default: no limit.")
def command(
    session: Session,
    *,
    file: str,
    name: str | None,
    dv: str | None,
    size: str | None,
    content_type: str,
    storage_class: str | None,
    access_mode: str | None,
    volume_mode: str | None,
    force_bind: bool,
    uploadproxy_url: str | None,
    ca: Path | None,
    insecure: bool,
    no_create: bool,
    waits: bool,
    timeout: float | None,
) -> None:
    """Upload FILE, or standard input (-), to volume NAME.

    An existing DataVolume NAME must wait for an upload; otherwise it is created.  The image size of a pipe is not known
    in advance, so --size is required.  In a cluster the file is sent to the upload proxy; after a failure, the upload
    resumes at the last byte that was received.
    """
    name = _name(name, dv)
    if file != "-":
        from cdi.client.locate import absolute

        file = str(absolute(file))
    if not session.in_cluster and (uploadproxy_url or ca or insecure or force_bind):
        raise UsageError(
            "--uploadproxy-url, --ca, --insecure and --force-bind apply only to a cluster",
            remedy="omit them, or select a cluster with --context, --kubeconfig or --cluster",
        )
    if session.in_cluster:
        _readable(file)
    elif file == "-":
        require_input()
    if not _exists(session, name):
        if no_create:
            raise NotFound(
                f"DataVolume {session.namespace}/{name} does not exist", remedy="create it, or omit --no-create"
            )
        storage: Object = {"resources": {"requests": {"storage": size or _needed(file, content_type)}}}
        storage |= {} if storage_class is None else {"storageClassName": storage_class}
        storage |= {} if access_mode is None else {"accessModes": [access_mode]}
        storage |= {} if volume_mode is None else {"volumeMode": volume_mode}
        manifest = _manifest(session.namespace, name, content_type, storage, bound=session.in_cluster)
        session.backend.apply([manifest])
    elif any(wish is not None for wish in (size, storage_class, access_mode, volume_mode)):
        raise UsageError(
            "the DataVolume already exists; its size and storage cannot be changed",
            where=f"{session.namespace}/{name}",
            remedy="omit --size, --storage-class, --access-mode and --volume-mode, or choose another name",
        )
    elif force_bind:
        from cdi.remote.upload_access import bind_now

        bind_now(session.remote, session.namespace, name)
    if session.in_cluster:
        send(session, file, name, url=uploadproxy_url, ca=ca, insecure=insecure, timeout=timeout)
    elif file == "-":
        session.embedded.upload_stream(session.namespace, name, sys.stdin.fileno(), _length())
    else:
        session.embedded.upload(session.namespace, name, Path(file))
    if waits:
        wait_for(session, session.namespace, name, timeout=timeout)
    else:
        click.echo(f"datavolume/{name} {'uploaded' if session.in_cluster else 'upload started'}")


def _name(name: str | None, dv: str | None) -> str:
    if (name is None) == (dv is None):
        what = "two volume names are given" if name is not None else "no volume name is given"
        raise UsageError(what, remedy="cdi upload FILE NAME, or cdi upload FILE --dv NAME")
    return one_datavolume(name or dv or "")


def _readable(file: str) -> None:
    """Require a file that can be read twice, since an interrupted upload is resumed.

    Raises:
        UsageError: `file` is a pipe, or cannot be read.
    """
    if file == "-":
        raise UsageError(
            "a pipe cannot be uploaded to a cluster: an interrupted upload could not be resumed",
            remedy="write the image to a file first",
        )
    try:
        with open(file, "rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
    except OSError as error:
        raise UsageError(f"cannot read the file: {error.strerror}", where=file) from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise UsageError("only a regular file or block device can be uploaded", where=file)


def send(
    session: Session, file: str, name: str, *, url: str | None, ca: Path | None, insecure: bool, timeout: float | None
) -> None:
    """Send a file to a cluster's DataVolume once it accepts an upload; raise what `UploadClient.send` raises."""
    from cdi.cli import bars
    from cdi.client.request import read_option_file
    from cdi.client.upload_client import UploadClient, Volume
    from cdi.remote.upload_access import await_ready, find_proxy, token

    cluster, namespace = session.remote, session.namespace
    authority = None if ca is None else read_option_file(ca).decode("utf-8", "replace")
    proxy = find_proxy(cluster, url=url, authority=authority, insecure=insecure)
    with bars.bar(name) as bar:
        await_ready(
            cluster,
            namespace,
            name,
            timeout=timeout,
            on_update=lambda body, _: bar.update((body.get("status") or {}).get("phase") or "Pending", None),
        )
    session.after_interrupt = "run the same command again, without --size, to resume"
    with open(file, "rb", buffering=0) as opened:
        length = opened.seek(0, os.SEEK_END)
        if not length:
            raise UsageError("the file is empty", where=file)
        with _Watcher(name, length) as watcher:
            UploadClient(
                proxy,
                Volume(namespace=namespace, name=name),
                opened,
                length,
                lambda: token(cluster, namespace, name),
                watcher,
            ).send()


class _Watcher:
    """A bar of the bytes sent; without a terminal, a line for each pause."""

    def __init__(self, label: str, total: int) -> None:
        from tqdm import tqdm

        self._label = printable(label)
        self._bar: tqdm[Any] = tqdm(
            desc=self._label,
            total=total,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            dynamic_ncols=True,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
        )

    def sent(self, done: int, total: int) -> None:
        del total
        self._bar.set_postfix_str("", refresh=False)
        # Bytes that were counted may be lost when a connection breaks.
        self._bar.update(done - self._bar.n) if done >= self._bar.n else self._bar.reset()
        if done and not self._bar.n:
            self._bar.update(done)

    def waits(self, why: str, seconds: float) -> None:
        if sys.stderr.isatty():
            self._bar.set_postfix_str(printable(f"{why}; retrying in {seconds:.0f} s"))
        else:
            with contextlib.suppress(OSError):
                click.echo(printable(f"{self._label}: {why}; retrying in {seconds:.0f} s"), err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()


def _exists(session: Session, name: str) -> bool:
    try:
        body = session.backend.get("dv", session.namespace, name)
    except NotFound:
        return False
    if "upload" not in (body["spec"].get("source") or {}):
        raise InvalidManifest(
            "the source of the DataVolume is not an upload",
            where=f"{session.namespace}/{name}",
            remedy="choose another name",
        )
    return True


def _needed(file: str, content_type: str) -> str:
    """Return the size that the image needs, as a quantity.

    Raises:
        UsageError: the size cannot be known before the upload.
        CdiError: the image is refused.
    """
    from cdi.client.locate import locate
    from cdi.client.request import Request
    from cdi.explain.inspect import inspect
    from cdi.image.sizes import MEBI, kubernetes_quantity

    if file == "-" or content_type == "archive":
        what = "a pipe" if file == "-" else "an archive"
        raise UsageError(f"the size of {what} is not known in advance", remedy="give --size")
    found = inspect(Request(place=locate(file)), whole=True)
    if found.refusal is not None:
        raise found.refusal
    if found.virtual_size is None:
        raise UsageError("the image does not contain its virtual size", where=file, remedy="give --size")
    return kubernetes_quantity(max(found.virtual_size, MEBI))


def _length() -> int | None:
    """Return the number of unread bytes of standard input if it is a regular file, else None."""
    descriptor = sys.stdin.fileno()
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        return None
    return max(0, info.st_size - os.lseek(descriptor, 0, os.SEEK_CUR))


def _manifest(namespace: str, name: str, content_type: str, storage: Object, *, bound: bool) -> Object:
    metadata: Object = {"name": name, "namespace": namespace}
    if bound:
        # No pod uses the claim yet that could be its first consumer.
        metadata["annotations"] = {ANN_IMMEDIATE_BINDING: ""}
    return {
        "apiVersion": DATA_VOLUMES.api_version,
        "kind": "DataVolume",
        "metadata": metadata,
        "spec": {"source": {"upload": {}}, "contentType": content_type, "storage": storage},
    }
