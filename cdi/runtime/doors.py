"""Uploads that come over connections: a worker of the volume listens, and whoever serves clients connects to it.

The worker is started by the first who asks, with a socket that is listened at as its standard input
(`cdi.worker.upload_local`).  Its name is an abstract one (unix(7)), made of the claim's uid: nothing is left behind
when the worker is gone, and it is found again by a server that was restarted.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import defaultdict

from cdi.api.errors import (
    AlreadyExists,
    AlreadyUploaded,
    Conflict,
    NotFound,
    UploadNotReady,
    UploadUnderWay,
    UsageError,
    WaitTimeout,
)
from cdi.api.names import ANN_IMAGE_VALIDATOR
from cdi.api.phases import Phase
from cdi.runtime.embedded import Embedded
from cdi.runtime.supervisor import ensure_supervisor
from cdi.runtime.view import phase_of
from cdi.store.base import Key, Object

_BACKLOG = 128
_NOT_YET = frozenset({Phase.UNSET, Phase.UNKNOWN, Phase.PENDING, Phase.PVC_BOUND})
"""Phases before anybody can upload: whoever asks waits without a thread that waits here."""


class Doors:
    """Of one CDI_HOME; used from many threads."""

    def __init__(self, embedded: Embedded) -> None:
        self._embedded = embedded
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def open(self, namespace: str, name: str) -> str | None:
        """Return the address of the worker that takes uploads into a volume, which is started where there is none.

        None where the volume is not made yet, or does not take an upload yet.  Raises `UploadNotReady` where it never
        will, `UploadUnderWay`, `AlreadyUploaded`, and the failure of a DataVolume that has failed.
        """
        where = f"{namespace}/{name}"
        claim = self._claim(namespace, name)
        try:
            if phase_of(self._embedded.get("dv", namespace, name)) in _NOT_YET or claim is None:
                ensure_supervisor(self._embedded.home)
                return None
            address = f"\0cdi-upload-{os.geteuid()}-{claim['metadata']['uid']}"
            if not _answers(address):
                with self._locks[address]:
                    if not _answers(address):
                        self._start(namespace, name, address)
        except NotFound as error:
            raise UploadNotReady("there is no such volume", where=where, remedy="make it first") from error
        except AlreadyExists as error:
            raise AlreadyUploaded("the volume has been filled", where=where) from error
        except Conflict as error:
            raise UploadUnderWay("another upload is under way", where=where) from error
        except UsageError as error:
            raise UploadNotReady(error.what, where=error.where or where, remedy=error.remedy) from error
        except WaitTimeout:
            return None
        return address

    def filled_by(self, namespace: str, name: str) -> str | None:
        """Return the name of the resumable upload that filled a volume; None where it was something else."""
        claim = self._claim(namespace, name)
        annotations = (claim["metadata"].get("annotations") or {}) if claim is not None else {}
        return annotations.get(ANN_IMAGE_VALIDATOR)

    def _claim(self, namespace: str, name: str) -> Object | None:
        try:
            return self._embedded.store.get(Key.of("pvc", namespace, name))
        except NotFound:
            return None

    def _start(self, namespace: str, name: str, address: str) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                raise Conflict("another program serves uploads into the volume") from error
            listener.listen(_BACKLOG)
            self._embedded.upload_stream(namespace, name, listener.fileno())


def _answers(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(address)
        except OSError:
            return False
    return True
