"""Conversion of ``images.yaml`` entries to the items of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cdi.api.datavolume import ContentType, DataVolume
from cdi.api.digest import Digest
from cdi.api.errors import CdiError, InvalidManifest
from cdi.api.kinds import DATA_VOLUMES
from cdi.api.policy import CHECKSUM, PREFIX, RECORD_DIGEST
from cdi.api.rules.problems import Problem, truncate
from cdi.api.sources import SourceKind
from cdi.api.validation import parse, validate
from cdi.batch.entries import Entry, Image
from cdi.batch.lockfile import without_secrets
from cdi.client.locate import Place, locate
from cdi.explain.item import Item, size_of, with_size
from cdi.store.base import Key, Object

_SIZE = ("spec.storage.resources.requests.storage", "spec.pvc.resources.requests.storage")


class Rejected(Exception):
    """Error with the problems of one entry or manifest."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def image_item(entry: Entry, *, place: str, base: Path, namespace: str) -> Item:
    """Return the item of an entry.

    Args:
        entry: The entry.
        place: The name of the file.
        base: The directory that relative paths refer to.
        namespace: The namespace of entries without one.

    Raises:
        Rejected: The entry is invalid.
    """
    problems: list[Problem] = []
    image, path = entry.image, entry.path
    located = _located(image, path, base, entry.own, problems)
    manifest = _manifest(image, path, located, problems)
    if problems:
        raise Rejected(problems)
    file = Path(located.text) if located is not None and located.kind == "file" else None
    return finish(
        manifest,
        names=lambda field: _renamed(field, path, located, image.policy or {}),
        place=f"{place}: {path}",
        label=f"{image.namespace}/{image.name}" if image.namespace else image.name,
        namespace=image.namespace or namespace,
        url=without_secrets(image.url) if image.url is not None else None,
        path=file,
    )


def _located(image: Image, path: str, base: Path, own: frozenset[str], problems: list[Problem]) -> Place | None:
    given = [
        name
        for name, value in (("url", image.url), ("source", image.source), ("sourceRef", image.source_ref))
        if value is not None
    ]
    if len(given) != 1:
        problems.append(
            Problem(
                field=path, message=f"only one of them may be set: {', '.join(given)}" if given else "url is missing"
            )
        )
        return None
    if image.url is None:
        for field, value in (("secretRef", image.secret_ref), ("certConfigMap", image.cert_config_map)):
            if value is not None:
                problems.append(
                    Problem(field=f"{path}.{field}", message="it applies only to url; put it into the source")
                )
        return None
    try:
        located = locate(image.url, base)
    except CdiError as error:
        problems.append(Problem(field=f"{path}.url", message=error.what))
        return None
    if located.kind == "stdin":
        problems.append(Problem(field=f"{path}.url", message="a batch does not read images from standard input"))
    if located.user is not None:
        problems.append(
            Problem(field=f"{path}.url", message="it contains a user; put accessKeyId and secretKey into a Secret")
        )
    fit = {"secret_ref": ("http", "s3", "gcs", "registry"), "cert_config_map": ("http", "s3", "registry")}
    for name, field in (("secret_ref", "secretRef"), ("cert_config_map", "certConfigMap")):
        # A default applies only to the sources that support it.
        if getattr(image, name) is not None and located.kind not in fit[name] and name in own:
            problems.append(
                Problem(field=f"{path}.{field}", message=f"a source of kind {located.kind} does not support it")
            )
    return located


def _manifest(image: Image, path: str, located: Place | None, problems: list[Problem]) -> Object:
    spec: dict[str, Any] = {}
    annotations = dict(image.annotations or {})
    for name, value in (image.policy or {}).items():
        text = value if isinstance(value, str) else str(value).lower()
        if annotations.setdefault(f"{PREFIX}{name}", text) != text:
            problems.append(Problem(field=f"{path}.policy.{truncate(name)}", message="the annotations contradict it"))
    if located is not None:
        spec["source"] = _source(image, located)
    elif image.source is not None:
        spec["source"] = image.source.to_dict()
    elif image.source_ref is not None:
        spec["sourceRef"] = image.source_ref.to_dict()
    if image.checksum is not None:
        _put_checksum(image.checksum, spec, annotations, path, problems)
    if image.content_type is not None:
        spec["contentType"] = image.content_type
    if image.preallocation is not None:
        spec["preallocation"] = image.preallocation
    if image.pvc is not None:
        spec["pvc"] = image.pvc.to_dict()
    if image.storage is not None:
        spec["storage"] = image.storage.to_dict()
    if "pvc" not in spec:
        spec.setdefault("storage", {})
    metadata: dict[str, Any] = {"name": image.name}
    if image.labels:
        metadata["labels"] = dict(image.labels)
    if annotations:
        metadata["annotations"] = annotations
    manifest: Object = {
        "apiVersion": DATA_VOLUMES.api_version,
        "kind": "DataVolume",
        "metadata": metadata,
        "spec": spec,
    }
    if image.size is not None:
        if size_of(manifest) is not None:
            problems.append(Problem(field=f"{path}.size", message="the size is also set in the PVC's request"))
        else:
            manifest = with_size(manifest, image.size.text)
    return manifest


def _source(image: Image, located: Place) -> Object:
    source = located.source
    member = source[located.member.value]
    if image.secret_ref is not None and located.fetched:
        member["secretRef"] = image.secret_ref
    if image.cert_config_map is not None and located.kind in ("http", "s3", "registry"):
        member["certConfigMap"] = image.cert_config_map
    return source


def _put_checksum(
    checksum: str, spec: dict[str, Any], annotations: dict[str, str], path: str, problems: list[Problem]
) -> None:
    source = spec.get("source") or {}
    try:
        Digest.parse(checksum)
    except CdiError as error:
        problems.append(Problem(field=f"{path}.checksum", message=error.what))
        return
    if "http" in source:
        if source["http"].setdefault("checksum", checksum) != checksum:
            problems.append(Problem(field=f"{path}.checksum", message="it differs from the source's checksum"))
    elif {"s3", "gcs", "registry", "upload", "imageio", "vddk"} & source.keys():
        annotations.setdefault(CHECKSUM, checksum)
    elif source or "sourceRef" in spec:
        problems.append(Problem(field=f"{path}.checksum", message="this source fetches no content to check"))


def _renamed(field: str, path: str, located: Place | None, policy: Mapping[str, Any]) -> str:
    """Return the name in the entry of a DataVolume's field."""
    if field in _SIZE:
        return f"{path}.size"
    knob = field.removeprefix(f"metadata.annotations[{PREFIX}").removesuffix("]")
    if knob in policy:
        return f"{path}.policy.{knob}"
    for prefix in ("metadata", "spec"):
        if field == prefix or field.startswith((f"{prefix}.", f"{prefix}[")):
            field = field.removeprefix(prefix).lstrip(".")
            break
    if located is not None and field.startswith(f"source.{located.member.value}."):
        field = field.removeprefix(f"source.{located.member.value}.")
    return f"{path}.{field}" if field else path


# --- common to entries and manifests ------------------------------------------------------------------------------


def finish(
    manifest: Object,
    *,
    names: Callable[[str], str],
    place: str,
    label: str,
    namespace: str,
    url: str | None,
    path: Path | None,
) -> Item:
    """Return a DataVolume as an item of a batch; `names` maps its fields to names in the user's file.

    Raises `Rejected` with all problems.
    """
    metadata = {**manifest["metadata"], "namespace": namespace}
    metadata["annotations"] = {RECORD_DIGEST: "true", **(metadata.get("annotations") or {})}
    manifest = {**manifest, "metadata": metadata}
    problems: list[Problem] = []
    try:
        unsized = size_of(manifest) is None
        dv = parse(with_size(manifest, "1Gi") if unsized else manifest)
        assert isinstance(dv, DataVolume)
        problems += validate(dv)
        if unsized and dv.spec.is_clone:
            # The size of a clone comes from its source; validation decides whether this form may omit it.
            unsized = False
            problems = [*validate(parse(manifest))]
    except InvalidManifest as error:
        raise Rejected([*problems, Problem(field=names(error.where or ""), message=error.what)]) from error
    problems += _impossible(dv, unsized=unsized, path=path)
    if problems:
        raise Rejected(
            [
                # The path that the API's messages begin with is none of the user's file; the field says it.
                Problem(field=names(problem.field), message=problem.message.removeprefix("spec.source "))
                for problem in dict.fromkeys(problems)
            ]
        )
    return Item(
        name=dv.metadata.name or "",
        namespace=namespace,
        label=label,
        place=place,
        manifest=manifest,
        url=url if url is not None else _url(dv),
        path=path,
        unsized=unsized,
        source=_cloned(dv),
    )


def _impossible(dv: DataVolume, *, unsized: bool, path: Path | None) -> Iterator[Problem]:
    source = dv.spec.source
    if source is not None and source.upload is not None and path is None:
        yield Problem(field="spec.source.upload", message="uploads are not supported in a batch; give a file as url")
    if unsized and source is not None and source.blank is not None:
        yield Problem(field=_SIZE[0], message="an empty disk needs a size")
    if unsized and dv.spec.content_type == ContentType.ARCHIVE:
        yield Problem(field=_SIZE[0], message="the volume of an archive needs a size")
    if not dv.metadata.name:
        yield Problem(field="metadata.name", message="a volume of a batch needs a name; generateName is not supported")


def _url(dv: DataVolume) -> str | None:
    """Return the URL of a source in the form that a lock file may contain."""
    source = dv.spec.source
    for kind, member in source.given() if source is not None else ():
        url = getattr(member, "url", None)
        if url is None and kind is SourceKind.REGISTRY:
            url = getattr(member, "image_stream", None)
        return without_secrets(url) if isinstance(url, str) else None
    return None


def _cloned(dv: DataVolume) -> Key | None:
    pvc = dv.spec.source.pvc if dv.spec.source is not None else None
    return None if pvc is None else Key("persistentvolumeclaims", pvc.namespace, pvc.name)
