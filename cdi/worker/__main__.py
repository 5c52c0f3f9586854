"""``python -m cdi.worker run JOB.json --status-dir DIR``: one job, from its file to its outcome."""

from __future__ import annotations

import sys

from cdi.worker.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
