"""Sources of images: the members of ``spec.source`` of a DataVolume."""

from __future__ import annotations

import enum
from collections.abc import Iterator

from cdi.api.model import Model


class SourceHttp(Model):
    """An image on an HTTP or HTTPS server."""

    url: str
    """URL of the image, http:// or https://."""
    secret_ref: str | None = None
    """A Secret with the keys accessKeyId (user name) and secretKey (password) for basic authentication."""
    cert_config_map: str | None = None
    """A ConfigMap with certificates, under any keys, that are trusted beside the system's."""
    extra_headers: list[str] | None = None
    """Whole header lines, `Name: value`, that are sent with every request."""
    secret_extra_headers: list[str] | None = None
    """Secrets; each value of each is a whole header line."""
    checksum: str | None = None
    """Expected checksum of the content, `algorithm:hex` (md5, sha1, sha256, sha512), before any unpacking."""
    insecure_skip_verify: bool | None = None
    """Do not check the server's certificate."""


class SourceS3(Model):
    """An image in an S3 bucket."""

    url: str
    """`s3://bucket/key`, or an endpoint's URL such as https://host/bucket/key."""
    secret_ref: str | None = None
    """A Secret with the keys accessKeyId and secretKey; anonymous where none is given."""
    cert_config_map: str | None = None
    """A ConfigMap with certificates, under any keys, that are trusted beside the system's."""


class SourceGcs(Model):
    """An image in a Google Cloud Storage bucket."""

    url: str
    """`gs://bucket/object`, or its https:// form."""
    secret_ref: str | None = None
    """A Secret with the key credentials.json, a service account's key; anonymous where none is given."""


class PlatformOptions(Model):
    """Which image of a multi-platform index."""

    architecture: str | None = None
    """The processor architecture, such as amd64 or arm64."""


class SourceRegistry(Model):
    """A disk in a container image (a containerDisk)."""

    url: str | None = None
    """`docker://host/repository:tag` or `oci-archive://path`."""
    image_stream: str | None = None
    """An OpenShift image stream instead of a URL; needs pullMethod node."""
    pull_method: str | None = None
    """pod (the importer pulls; the default) or node (the node's container runtime pulls)."""
    secret_ref: str | None = None
    """A Secret with the keys accessKeyId and secretKey, or a .dockerconfigjson."""
    cert_config_map: str | None = None
    """A ConfigMap with certificates, under any keys, that are trusted beside the system's."""
    platform: PlatformOptions | None = None
    """Which image of a multi-platform index."""


class SourcePvc(Model):
    """A volume to clone."""

    namespace: str
    """The claim's namespace."""
    name: str
    """The claim's name."""


class SourceSnapshot(Model):
    """A snapshot to clone."""

    namespace: str
    """The VolumeSnapshot's namespace."""
    name: str
    """The VolumeSnapshot's name."""


class SourceUpload(Model):
    """The image is sent by a client."""


class SourceBlank(Model):
    """An empty raw disk."""


class SourceImageio(Model):
    """A disk of an oVirt engine."""

    url: str
    """The engine's API, https://."""
    disk_id: str
    """The id of the disk, or of the snapshot's disk."""
    secret_ref: str | None = None
    """A Secret with the keys accessKeyId (user name) and secretKey (password)."""
    cert_config_map: str | None = None
    """A ConfigMap with the engine's CA certificate."""
    insecure_skip_verify: bool | None = None
    """Do not check the engine's certificate."""


class SourceVddk(Model):
    """A disk of a VMware vCenter or ESXi host."""

    url: str | None = None
    """The vCenter or ESXi host, https://."""
    uuid: str | None = None
    """The virtual machine that the disk belongs to."""
    backing_file: str | None = None
    """The path of the disk on the datastore."""
    thumbprint: str | None = None
    """The fingerprint of the host's certificate."""
    secret_ref: str | None = None
    """A Secret with the keys accessKeyId (user name) and secretKey (password)."""
    cert_config_map: str | None = None
    """A ConfigMap with certificates, under any keys, that are trusted beside the system's."""
    init_image_url: str | None = None
    """A container image that holds the VDDK library."""
    extra_args: str | None = None
    """A ConfigMap with further arguments for the VDDK library."""


class SourceKind(enum.StrEnum):
    """Members of a DataVolume's source; the value is the name of the field."""

    HTTP = "http"
    S3 = "s3"
    GCS = "gcs"
    REGISTRY = "registry"
    PVC = "pvc"
    SNAPSHOT = "snapshot"
    UPLOAD = "upload"
    BLANK = "blank"
    IMAGEIO = "imageio"
    VDDK = "vddk"


AnySource = (
    SourceHttp
    | SourceS3
    | SourceGcs
    | SourceRegistry
    | SourcePvc
    | SourceSnapshot
    | SourceUpload
    | SourceBlank
    | SourceImageio
    | SourceVddk
)


class ImportSource(Model):
    """Source of a populated PVC; exactly one member is set."""

    http: SourceHttp | None = None
    """An image on an HTTP or HTTPS server."""
    s3: SourceS3 | None = None
    """An image in an S3 bucket."""
    gcs: SourceGcs | None = None
    """An image in a Google Cloud Storage bucket."""
    registry: SourceRegistry | None = None
    """A disk in a container image."""
    blank: SourceBlank | None = None
    """An empty raw disk."""
    imageio: SourceImageio | None = None
    """A disk of an oVirt engine."""
    vddk: SourceVddk | None = None
    """A disk of a VMware vCenter or ESXi host."""

    def given(self) -> Iterator[tuple[SourceKind, AnySource]]:
        """Yield the members that are set, in the order of `SourceKind`; a valid object has exactly one."""
        for kind in SourceKind:
            member: AnySource | None = getattr(self, kind.value, None)
            if member is not None:
                yield kind, member


class DataVolumeSource(ImportSource):
    """Source of a DataVolume; exactly one member is set."""

    pvc: SourcePvc | None = None
    """A volume to clone."""
    upload: SourceUpload | None = None
    """The image is sent by a client."""
    snapshot: SourceSnapshot | None = None
    """A snapshot to clone."""
