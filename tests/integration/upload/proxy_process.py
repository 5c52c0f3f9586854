"""The upload proxy as a process, with volumes from a file.

{"namespace/name": PORT | "waiting" | "done" | ["done", UPLOAD] | "missing"}
"""

import json
import sys
from pathlib import Path

from cdi.api.errors import ClusterUnauthorized, UploadNotReady
from cdi.logs import LogFormat, configure
from cdi.server.page.backend import VolumeBackend
from cdi.server.page.service import Page
from cdi.server.proxy.forward import WaitLimits
from cdi.server.proxy.run import Options, serve
from cdi.server.proxy.volumes import Destination, Filled, Pending, VolumeState


class FileVolumes:
    def __init__(self, path: Path) -> None:
        self.path = path

    def look(self, namespace: str, name: str) -> VolumeState:
        found = json.loads(self.path.read_text()).get(f"{namespace}/{name}", "missing")
        match found:
            case int():
                return Destination(host="localhost", port=found)
            case "waiting":
                return Pending(why="its scratch space is being made")
            case "done":
                return Filled()
            case ["done", upload]:
                return Filled(upload=upload)
            case _:
                raise UploadNotReady("the PersistentVolumeClaim does not exist", where=f"{namespace}/{name}")


class NoDesks:
    """A backend provider for a page that loads and rejects every token."""

    hint = "none"

    def recognises(self, token: str) -> bool:
        del token
        raise ClusterUnauthorized("no user is known here")

    def of(self, token: str) -> VolumeBackend:
        del token
        raise ClusterUnauthorized("no user is known here")


def main(home: str, port: str, stall: str, replacement: str, contention: str) -> None:
    base = Path(home)
    configure(LogFormat.JSON)
    options = Options(
        tls=str(base / "proxy"),
        client=str(base / "client"),
        authorities=str(base / "server-ca.crt"),
        token_key=str(base / "id_rsa.pub"),
        port=int(port),
        drain=20.0,
        stall_timeout=float(stall),
        patience=WaitLimits(replacement=float(replacement), contention=float(contention)),
        metrics_port=0,
    )
    serve(
        options,
        FileVolumes(base / "volumes.json"),
        pages=Page(NoDesks()).begin,
        listening=lambda port: print(port, flush=True),
        telling=lambda port: print(port, flush=True),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
