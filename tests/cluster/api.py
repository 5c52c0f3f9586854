"""Just enough of an API client to see the cluster come up: kubectl takes a tenth of a second of processor each time."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any


class Api:
    """Reads with the certificate of a kubeconfig that `pki` made."""

    def __init__(self, kubeconfig: Path) -> None:
        document = json.loads(kubeconfig.read_text())
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        self._address = urllib.parse.urlsplit(cluster["server"]).netloc
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._context = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile() as pair:  # a context takes its own certificate from files only
            for part in ("client-certificate-data", "client-key-data"):
                pair.write(base64.b64decode(user[part]))
            pair.flush()
            self._context.load_cert_chain(pair.name)

    def get(self, path: str) -> Any:
        """What is at a path: a document, or text.  Raises OSError where there is no answer or another than 200."""
        connection = http.client.HTTPSConnection(self._address, context=self._context, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"{path}: {error}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise OSError(f"{path}: {response.status}")
        return json.loads(body) if body.startswith(b"{") else body.decode()
