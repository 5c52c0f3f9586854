"""Credentials for signing S3 requests: the job's secret, boto's credential chain, or none.

The chain is boto's complete one: environment, shared credentials and config files with their profiles, assumed roles,
web identity, SSO, processes, container and instance metadata.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import ssl
import tempfile
from collections.abc import Callable
from typing import Any, Protocol

from cdi.api.errors import SourceCredentialsInvalid, SourceProtocolError, SourceTlsUntrusted, SourceUnreachable
from cdi.api.job import Credentials, Proxy, S3SourceSpec, Tls
from cdi.api.printable import printable
from cdi.http.headers import read_secret
from cdi.source.s3_sigv4 import AwsCredentials

_REMEDY = "correct the AWS configuration, or give a secret with accessKeyId and secretKey"


class CredentialProvider(Protocol):
    """A provider of keys that may change over time; thread-safe."""

    region: str | None
    """The region in the provider's own configuration."""

    def keys(self) -> AwsCredentials | None:
        """Return the current keys; None for anonymous access.

        Raises `SourceCredentialsInvalid` or `SourceUnreachable`.
        """
        ...


class FileCredentials:
    """Keys from the job's files, which are read for each use because a rotated secret changes in place."""

    def __init__(self, credentials: Credentials) -> None:
        """Store the paths; raise `SourceCredentialsInvalid` if one of the two keys is missing."""
        if credentials.access_key_file is None or credentials.secret_key_file is None:
            raise SourceCredentialsInvalid("S3 requires both accessKeyId and secretKey", where="source.s3.secretRef")
        self._access, self._secret = credentials.access_key_file, credentials.secret_key_file
        self._session = credentials.session_token_file
        self.region = environment_region()

    def keys(self) -> AwsCredentials:
        return AwsCredentials(
            access_key=_line(self._access),
            secret_key=_line(self._secret),
            session_token=None if self._session is None else _line(self._session) or None,
        )


class AnonymousCredentials:
    """Anonymous access: requests are not signed."""

    def __init__(self) -> None:
        self.region = environment_region()

    def keys(self) -> None:
        return None


class BotocoreCredentials:
    """Keys from boto's credential chain, which renews temporary keys before they expire."""

    def __init__(self, tls: Tls, proxy: Proxy) -> None:
        """Find credentials; raise `SourceCredentialsInvalid` or `SourceUnreachable` if configured ones do not work."""
        # The import takes a quarter of a second of CPU time, which is avoided for jobs with their own secret.
        import boto3
        import botocore.config
        import botocore.session

        # Requests to token services use the same CA certificates and proxy as those for the object; boto3 has no
        # settings for them that hold for all its clients.
        core = botocore.session.get_session()
        if tls.ca_dir is not None:
            core.set_config_variable("ca_bundle", _bundle(tls.ca_dir))
        proxies = {scheme: url for scheme, url in (("http", proxy.http), ("https", proxy.https)) if url}
        core.set_default_client_config(botocore.config.Config(proxies=proxies or None, connect_timeout=30))
        session = _map_botocore_errors(lambda: boto3.Session(botocore_session=core))
        self._credentials: Any = _map_botocore_errors(session.get_credentials)
        self.region: str | None = environment_region() or _map_botocore_errors(lambda: session.region_name)

    def keys(self) -> AwsCredentials | None:
        if self._credentials is None:
            return None
        frozen = _map_botocore_errors(self._credentials.get_frozen_credentials)
        if not frozen.access_key or not frozen.secret_key:
            return None
        return AwsCredentials(access_key=frozen.access_key, secret_key=frozen.secret_key, session_token=frozen.token)


def identity_for(spec: S3SourceSpec) -> CredentialProvider:
    """Return the provider for a job; raise `SourceCredentialsInvalid` or `SourceUnreachable`."""
    given = spec.credentials
    if given.access_key_file is not None or given.secret_key_file is not None:
        return FileCredentials(given)
    if spec.anonymous:
        return AnonymousCredentials()
    return BotocoreCredentials(spec.tls, spec.proxy)


def environment_region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def _line(path: str) -> str:
    text = read_secret(path).strip()
    if any(not 0x20 < ord(c) < 0x7F for c in text):
        raise SourceCredentialsInvalid("the secret contains characters that are invalid in a key", where=path)
    return text


def _map_botocore_errors(call: Callable[[], Any]) -> Any:
    """Call `call` and convert boto's exceptions to `SourceError`s."""
    # botocore is already imported when this function is called.
    import botocore.exceptions as known
    import botocore.parsers

    where = "AWS credential chain"
    try:
        return call()
    except known.SSLError as error:
        raise SourceTlsUntrusted(f"cannot get credentials: {_brief(error)}", where=where) from error
    except (known.ConnectionError, known.HTTPClientError) as error:
        raise SourceUnreachable(f"cannot get credentials: {_brief(error)}", where=where) from error
    except botocore.parsers.ResponseParserError as error:
        raise SourceProtocolError("invalid response of a credential service", where=where) from error
    except (known.BotoCoreError, known.ClientError) as error:
        raise SourceCredentialsInvalid(_brief(error), where=where, remedy=_REMEDY) from error
    except (OSError, ValueError, KeyError) as error:  # boto parses a profile's files without much validation
        kind = type(error).__name__
        raise SourceCredentialsInvalid(f"invalid AWS configuration: {kind}", where=where) from error


def _brief(error: Exception) -> str:
    return printable(str(error), 300).rstrip(" .")


def _bundle(ca_dir: str) -> str:
    """Write the CA certificates of the system and of the directory to one file, the only form that boto accepts."""
    paths = ssl.get_default_verify_paths()
    files = [paths.cafile] if paths.cafile else []
    files += [os.path.join(ca_dir, name) for name in sorted(os.listdir(ca_dir)) if not name.startswith("..")]
    descriptor, bundle = tempfile.mkstemp(prefix="cdi-ca-", suffix=".pem")
    # Boto reads the file on every renewal, so it is kept until the process exits.
    atexit.register(_remove, bundle)
    with os.fdopen(descriptor, "wb") as output:
        for path in files:
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    output.write(file.read(4 << 20) + b"\n")
    return bundle


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
