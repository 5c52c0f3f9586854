"""Uploads over connections: a worker of the volume listens, and servers connect to it for their clients.

The first request starts the worker, with a listening socket as its standard input (`cdi.worker.upload_local`). The
socket has an abstract name (unix(7)) made from the PVC's uid: it disappears with the worker, and a restarted server
finds it again.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import defaultdict

from cdi.api.annotation_types import annotations_of
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
from cdi.client.status_view import phase_of
from cdi.local.backend import LocalBackend
from cdi.local.supervisor import ensure_supervisor
from cdi.store.base import Key, Object

_BACKLOG = 128
_NOT_YET = frozenset({Phase.UNSET, Phase.UNKNOWN, Phase.PENDING, Phase.PVC_BOUND})
"""Phases before uploads are possible; `open` returns at once, and its caller tries again."""


class UploadSockets:
    """Upload sockets of one CDI_HOME; used by many threads."""

    def __init__(self, embedded: LocalBackend) -> None:
        self._embedded = embedded
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def open(self, namespace: str, name: str) -> str | None:
        """Return the address of the worker that receives uploads into a volume; start the worker if necessary.

        Returns:
            The address, or None if the volume does not exist or does not accept an upload yet.

        Raises:
            UploadNotReady: It never will.
            UploadUnderWay: Another upload is running.
            AlreadyUploaded: The volume has its image.
            CdiError: The DataVolume has failed.
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
            raise UploadNotReady("the volume does not exist", where=where, remedy="create it first") from error
        except AlreadyExists as error:
            raise AlreadyUploaded("the volume is already populated", where=where) from error
        except Conflict as error:
            raise UploadUnderWay("another upload is in progress", where=where) from error
        except UsageError as error:
            raise UploadNotReady(error.what, where=error.where or where, remedy=error.remedy) from error
        except WaitTimeout:
            return None
        return address

    def filled_by(self, namespace: str, name: str) -> str | None:
        """Return the name of the resumable upload that filled a volume, or None if it was filled otherwise."""
        return annotations_of(self._claim(namespace, name)).get(ANN_IMAGE_VALIDATOR)

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
                raise Conflict("another process serves uploads into the volume") from error
            listener.listen(_BACKLOG)
            self._embedded.upload_stream(namespace, name, listener.fileno())


def _answers(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(address)
        except OSError:
            return False
    return True
