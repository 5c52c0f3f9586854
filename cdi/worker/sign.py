"""Signing of a record of origin: ``cdi-worker sign-record STATEMENT KEYS ID [TERMINATION-LOG]``.

A pod signs, so that the controller never holds the key: STATEMENT is a file (an annotation of the pod, through the
downward API), KEYS the directory of the mounted Secret. The termination message is a `cdi.api.origin.SignResult`: the
signature alone, since an envelope may not fit.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import sys

from cdi.api.errors import CdiError, SigningKeyInvalid, UsageError
from cdi.api.job import Failure
from cdi.api.origin import MAX_STATEMENT, SignResult
from cdi.verify.dsse import MAX_KEY, key_entry, sign
from cdi.worker import log
from cdi.worker.pod import Options

LOG = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run ``sign-record`` and return the exit status."""
    if len(arguments) not in (3, 4):
        print("usage: cdi-worker sign-record STATEMENT KEYS ID [TERMINATION-LOG]", file=sys.stderr)  # noqa: T201 - usage errors go to standard error
        return UsageError.exit_status
    statement, keys, identity, *rest = arguments
    try:
        result = _sign(statement, keys, identity)
    except CdiError as error:
        result = SignResult(id=identity, failure=Failure.from_error(error))
    with open(rest[0] if rest else Options().termination_log, "w", encoding="ascii") as file:
        file.write(result.to_json())
    if result.failure is not None:
        log.log_failure(result.failure)
        return result.failure.exit_status
    LOG.info(f"signed the record of origin with key {result.keyid}")
    return 0


def _sign(statement: str, keys: str, identity: str) -> SignResult:
    content = _read(statement, MAX_STATEMENT)
    envelope = sign(content, read_key(keys), where="the Secret of golden.recordKey")
    (signature,) = envelope.signatures
    return SignResult(
        id=identity,
        statement=hashlib.sha256(content).hexdigest(),
        keyid=signature.keyid,
        signature=base64.b64encode(signature.value).decode(),
    )


def read_key(directory: str) -> bytes:
    """Return the private key in the directory of a mounted Secret; raise `SigningKeyInvalid`."""
    try:
        names = [name for name in os.listdir(directory) if not name.startswith(".")]
    except OSError as error:
        raise SigningKeyInvalid(f"the Secret is not mounted: {error.strerror}", where=directory) from error
    return _read(os.path.join(directory, key_entry(names)), MAX_KEY)


def _read(path: str, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise SigningKeyInvalid(f"the file cannot be read: {error.strerror}", where=path) from error
    if len(content) > limit:
        raise SigningKeyInvalid(f"the file has more than {limit} bytes", where=path)
    return content
