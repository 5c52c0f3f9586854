"""HTTP endpoints with the progress of a worker."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict

from cdi.api.copy import AnyJob
from cdi.transfer.control import TransferControl
from cdi.worker.status_server import Response

METRIC = "kubevirt_cdi_{}_progress_total"
OWNER = "OWNER_UID"
"""Environment variable with the UID for the metric's ``ownerUID`` label; the default is the job's id."""


def endpoints(
    job: AnyJob, control: TransferControl, journal: Callable[[], str | None], work: str = "import"
) -> Mapping[str, Callable[[], Response]]:
    """Return the endpoints by path: ``/progress`` in JSON, ``/metrics`` for Prometheus, ``/healthz``."""
    metric = METRIC.format(work)

    def progress() -> Response:
        document = {"progress": asdict(control.progress()), "journal": journal()}
        return Response(content_type="application/json", body=json.dumps(document, separators=(",", ":")).encode())

    def metrics() -> Response:
        percent = 100 * (control.progress().fraction or 0.0)
        text = (
            f"# HELP {metric} Progress of the {work} in percent.\n# TYPE {metric} counter\n"
            f'{metric}{{ownerUID="{_escaped(os.environ.get(OWNER) or job.id)}"}} {percent:.2f}\n'
        )
        return Response(content_type="text/plain; version=0.0.4; charset=utf-8", body=text.encode())

    def healthz() -> Response:
        return Response(content_type="text/plain", body=b"ok\n")

    return {"/progress": progress, "/metrics": metrics, "/healthz": healthz}


def _escaped(value: str) -> str:
    """Escape a label value (exposition format, "Comments, help text, and type information")."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
