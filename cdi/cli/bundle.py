"""The ``cdi bundle`` commands: golden images for machines and clusters without a network."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdi.api.errors import UsageError
from cdi.api.policy import parse_policy_annotations
from cdi.cli import bars
from cdi.cli.access import access_options, read_access
from cdi.cli.options import duration
from cdi.cli.session import Session, common_options, subcommand
from cdi.cli.show import document, printable, table
from cdi.cli.upload import send
from cdi.cli.wait import wait_for
from cdi.image.sizes import MEBI, format_size

if TYPE_CHECKING:
    from cdi.bundle.create import FindAccess, Written
    from cdi.bundle.install import Checked
    from cdi.bundle.layout import OnBytes
    from cdi.bundle.selection import Selection
    from cdi.client.request import Access

_FILE = click.Path(path_type=Path)


@click.group("bundle", context_settings={"help_option_names": ["-h", "--help"]})
@common_options
def command() -> None:
    """Carry golden images, with signatures and records of origin, to where there is no network."""


@command.add_command
@subcommand("create")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=_FILE,
    metavar="DIR|FILE.tar",
    help="Write an OCI image layout: a tar if the name ends in .tar, else a directory.",
)
@click.option(
    "--from",
    "origin",
    type=click.Choice(["auto", "source", "volume"]),
    default="auto",
    show_default=True,
    help="Fetch the pinned version from its source again, or convert this machine's volume; auto: the source for"
    " registries, whose signatures then stay valid, else the volume.",
)
@click.option(
    "--sign-key",
    type=_FILE,
    metavar="FILE",
    help="Sign a statement about each image with the private key (PEM) in FILE.",
)
@access_options
def create(
    session: Session, *, names: tuple[str, ...], output: Path, origin: Any, sign_key: Path | None, **options: Any
) -> None:
    """Write golden images into one file or directory.

    NAME is a DataSource, of which the offered version is bundled, or a volume.  Run the same command again to continue
    after an interruption.
    """
    from cdi.bundle.create import BundleCreator, Options
    from cdi.bundle.selection import select
    from cdi.client.request import read_option_file
    from cdi.local.home import Home

    key = None if sign_key is None else read_option_file(sign_key)
    access = read_access(options)
    find_volume = session.backend.version_object
    selections = [select(session.store, find_volume, session.namespace, name) for name in dict.fromkeys(names)]
    session.after_interrupt = "run the same command again to continue"
    creator = BundleCreator(
        Home.find(session.root), output.absolute(), Options(origin=origin, key=key), _find_access(session, access)
    )
    written = creator.create(selections, None if session.in_cluster else _volume_path(session), _progress)
    session.after_interrupt = None
    for one in written:
        click.echo(printable(_written(one)))
    click.echo(f"bundle written: {output}")


def _written(one: Written) -> str:
    kind = "the registry's image" if one.original else "made from the disk"
    signed = f", {one.signatures} signatures" if one.signatures else ""
    return f"{one.name}: {one.digest} ({kind}{signed})"


def _progress(name: str) -> OnBytes:
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        step = 64 * MEBI
        if done // step > before // step:
            click.echo(printable(f"{name}: {format_size(done)}"), err=True)

    return on_bytes


def _volume_path(session: Session) -> Any:
    def path(selection: Selection) -> Path:
        return session.embedded.volume_path(selection.namespace, selection.volume)

    return path


def _find_access(session: Session, given: Access) -> FindAccess:
    from cdi.client.request import Access, secret_values

    def find(selection: Selection) -> tuple[Access, Mapping[str, bytes] | None]:
        """Return the options of the command line, else what the DataVolume's source refers to."""
        access = given
        member: Mapping[str, Any] = next((one for one in selection.source.values() if isinstance(one, Mapping)), {})
        backend, namespace = session.backend, selection.namespace
        if replace(given, architecture=None) == Access():
            if member.get("secretRef"):
                access = replace(access, secret=str(member["secretRef"]))
            if member.get("certConfigMap"):
                data = backend.get("configmap", namespace, str(member["certConfigMap"]))
                access = replace(access, authority=_certificates(data))
            access = _http(session, selection, _object_store(selection, access))
        platform = member.get("platform") or {}
        if access.architecture is None and platform.get("architecture"):
            access = replace(access, architecture=str(platform["architecture"]))
        if access.secret is None:
            return access, None
        return access, secret_values(backend.get("secret", namespace, access.secret))

    return find


def _object_store(selection: Selection, access: Access) -> Access:
    """Return the access with the settings of the import for a service with the API of S3 or GCS."""
    policy = parse_policy_annotations(selection.policy)
    if "gcs" in selection.source:
        return replace(access, endpoint=policy.endpoint)
    if "s3" in selection.source:
        return replace(
            access,
            endpoint=policy.endpoint,
            region=policy.region,
            addressing=policy.addressing,
            anonymous=policy.anonymous and access.secret is None,
        )
    return access


def _http(session: Session, selection: Selection, access: Access) -> Access:
    """Return the access with the headers of the import from an HTTP server."""
    from cdi.client.request import secret_values

    member = selection.source.get("http")
    if not isinstance(member, Mapping):
        return access
    found = (
        secret_values(session.backend.get("secret", selection.namespace, str(name)))
        for name in member.get("secretExtraHeaders") or ()
    )
    return replace(
        access,
        insecure=bool(member.get("insecureSkipVerify")),
        headers=tuple(map(str, member.get("extraHeaders") or ())),
        secret_headers=tuple(values[key] for values in found for key in sorted(values)),
    )


def _certificates(body: Mapping[str, Any]) -> bytes:
    import base64

    texts = [str(text).encode() for text in (body.get("data") or {}).values()]
    texts += [base64.b64decode(text) for text in (body.get("binaryData") or {}).values()]
    return b"\n".join(texts)


@command.add_command
@subcommand("list")
@click.argument("file", type=_FILE, metavar="DIR|FILE")
@click.option("--record-key", type=_FILE, metavar="FILE", help="Verify the records with the public key (PEM) in FILE.")
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help="Print everything in this format.")
def list_(session: Session, *, file: Path, record_key: Path | None, output: str | None) -> None:  # noqa: ARG001  part of the protocol
    """List the golden images in a bundle, and verify everything except the layers."""
    from cdi.bundle.contents import Bundle
    from cdi.bundle.install import check
    from cdi.client.request import read_option_file

    key = None if record_key is None else read_option_file(record_key)
    with Bundle(file.absolute()) as bundle:
        found = [check(bundle, name, key) for name in bundle.names]
        if output is not None:
            click.echo(document([_facts(one) for one in found], output))
            return
        headers = ["NAME", "VERSION", "SIZE", "DIGEST", "SIGNATURES", "RECORD"]
        for line in table(headers, [_row(one) for one in found]):
            click.echo(line)


def _row(one: Checked) -> list[str]:
    image = one.image
    size = "" if image.document.size is None else format_size(image.document.size)
    record = "verified" if one.key else "yes" if image.record is not None else ""
    return [image.name, one.volume, size, str(image.digest), str(image.signatures or ""), record]


def _facts(one: Checked) -> dict[str, Any]:
    from cdi.api.json_document import parse_json
    from cdi.api.origin import parse_record

    image = one.image
    record = None if image.record is None else parse_record(image.record)
    return {
        "name": image.name,
        "volume": one.volume,
        "digest": str(image.digest),
        "original": image.document.original,
        "version": image.document.version.model_dump(by_alias=True, exclude_none=True, mode="json"),
        "labels": dict(image.document.labels),
        "recordKey": one.key,
        "record": None if record is None else parse_json(record.payload),
        "dataImportCron": image.document.cron,
    }


@command.add_command
@subcommand("import")
@click.argument("file", type=_FILE, metavar="DIR|FILE")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--record-key",
    type=_FILE,
    metavar="FILE",
    help="Import only images with a record that the private key of the public key (PEM) in FILE signed.",
)
@click.option(
    "--cosign-key",
    type=_FILE,
    metavar="FILE",
    help="Import only images with a cosign signature by a public key (PEM) in FILE.",
)
@click.option("--with-cron", is_flag=True, help="Create the DataImportCrons as well, without a schedule.")
@click.option("--storage-class", help="Set the StorageClass of the volumes; default: the cluster's.")
@click.option("--uploadproxy-url", metavar="URL", help="In a cluster: use this upload proxy.")
@click.option("--ca", type=_FILE, metavar="FILE", help="In a cluster: trust these certificates for the upload proxy.")
@click.option("--insecure", is_flag=True, help="In a cluster: skip verification of the upload proxy's certificate.")
@click.option("--timeout", type=duration, help="Wait at most this long for each image; default: no limit.")
def import_(
    session: Session,
    *,
    file: Path,
    names: tuple[str, ...],
    record_key: Path | None,
    cosign_key: Path | None,
    with_cron: bool,
    storage_class: str | None,
    uploadproxy_url: str | None,
    ca: Path | None,
    insecure: bool,
    timeout: float | None,
) -> None:
    """Import golden images of a bundle, all or those that are named, and offer them by their DataSources.

    On this machine the volumes are read from the bundle in place; no network is used.  In a cluster the images are
    uploaded.  Everything is verified before a DataSource is changed.
    """
    from cdi.bundle.contents import Bundle
    from cdi.bundle.install import check, offer, require_free
    from cdi.client.request import read_option_file

    if not session.in_cluster and (uploadproxy_url or ca or insecure):
        raise UsageError("--uploadproxy-url, --ca and --insecure apply only to a cluster", remedy="omit them")
    key = None if record_key is None else read_option_file(record_key)
    if cosign_key is not None:
        read_option_file(cosign_key)
        cosign_key = cosign_key.absolute()
    path = file.absolute()
    with Bundle(path) as bundle:
        # Refuse before anything is written.
        checked = [check(bundle, name, key) for name in (dict.fromkeys(names) or bundle.names)]
        for one in checked:
            require_free(session.backend, one, session.namespace, with_cron=with_cron)
        for one in checked:
            if session.in_cluster:
                _upload(session, path, one, cosign_key, storage_class, uploadproxy_url, ca, timeout, insecure=insecure)
            else:
                _import_here(session, path, one, cosign_key, storage_class)
            wait_for(session, session.namespace, one.volume, timeout=timeout)
            for line in offer(session.backend, one, session.namespace, with_cron=with_cron):
                click.echo(line)


def _import_here(
    session: Session, path: Path, one: Checked, cosign_key: Path | None, storage_class: str | None
) -> None:
    from cdi.bundle.install import data_volume, find_earlier, request_of
    from cdi.explain.find_size import find_size

    namespace = session.namespace
    size = find_size(session.embedded.home, request_of(path, one), namespace, one.volume)
    keys = None if cosign_key is None else str(cosign_key)
    wanted = data_volume(path, one, namespace, size, cosign_keys=keys, storage_class=storage_class)
    find_earlier(session.backend, wanted)
    session.backend.apply([wanted])


def _upload(
    session: Session,
    path: Path,
    one: Checked,
    cosign_key: Path | None,
    storage_class: str | None,
    proxy: str | None,
    ca: Path | None,
    timeout: float | None,
    *,
    insecure: bool,
) -> None:
    """Verify and convert the image on this machine, and upload it as a compressed qcow2, unless it was uploaded."""
    from cdi.bundle.disk_image import compress
    from cdi.bundle.install import is_uploaded, request_of, upload_volume
    from cdi.local.home import Home
    from cdi.local.import_to_path import import_to_path

    if cosign_key is not None:
        raise UsageError(
            "--cosign-key is not supported for uploads to a cluster",
            remedy="push the image to a registry of the cluster, and let it verify the signature: "
            f"skopeo copy oci-archive:{shlex.quote(str(path))}:{one.image.name} docker://REGISTRY/{one.image.name}",
        )
    if is_uploaded(session.backend, one, session.namespace):
        return
    wanted_name = one.volume
    with tempfile.TemporaryDirectory(prefix="cdi-bundle-") as directory:
        raw, qcow2 = Path(directory) / "disk.raw", Path(directory) / "disk.qcow2"
        with bars.bar(wanted_name) as bar:
            import_to_path(
                Home.find(session.root), request_of(path, one), raw, on_progress=lambda now: bar.update(now.phase, now)
            )
        size = max(raw.stat().st_size, MEBI)
        compress(raw, qcow2)
        raw.unlink()
        wanted = upload_volume(one, session.namespace, size, storage_class=storage_class)
        session.backend.apply([wanted])
        send(session, str(qcow2), wanted_name, url=proxy, ca=ca, insecure=insecure, timeout=timeout)
