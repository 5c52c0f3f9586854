"""Creation of the source object for a job.

Each kind is imported only when used, so that a worker for a small HTTP image does not import boto3.
"""

from __future__ import annotations

from typing import assert_never

from cdi.api.errors import InternalError
from cdi.api.job import (
    BlankSourceSpec,
    FileSourceSpec,
    GcsSourceSpec,
    HttpSourceSpec,
    Policy,
    RegistrySourceSpec,
    S3SourceSpec,
    SourceSpec,
    StreamSourceSpec,
)
from cdi.api.peer import PeerSourceSpec
from cdi.source.base import Source


def open_source(spec: SourceSpec, policy: Policy) -> Source:
    """Create the source for `spec` without sending a request; the caller closes it.

    Raises errors about the job itself (`SourceUrlInvalid`, `SourceCredentialsInvalid`, `InvalidManifest`). A registry
    provides layers (`cdi.source.registry.open.open_registry`), a peer connects by itself
    (`cdi.source.peer_connections`) and blank has no bytes, so these raise `InternalError`.
    """
    match spec:
        case HttpSourceSpec():
            from cdi.source.http import open_http

            return open_http(spec, policy.stall_timeout)
        case S3SourceSpec():
            from cdi.source.s3 import open_s3

            return open_s3(spec, policy.stall_timeout)
        case GcsSourceSpec():
            from cdi.source.gcs import open_gcs

            return open_gcs(spec, policy.stall_timeout)
        case FileSourceSpec():
            from cdi.source.file import FileSource

            return FileSource(spec.path)
        case StreamSourceSpec():
            from cdi.source.stream import PipeSource

            return PipeSource(spec.descriptor, length=spec.length, stall_timeout=policy.stall_timeout)
        case RegistrySourceSpec() | PeerSourceSpec() | BlankSourceSpec():
            raise InternalError(f"a {spec.kind} source is not a byte stream", where=spec.kind)
        case _:
            assert_never(spec)
