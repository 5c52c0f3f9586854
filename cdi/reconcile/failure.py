"""Conversion of errors to stored failures."""

from __future__ import annotations

from cdi.api.errors import CdiError
from cdi.api.job import Failure


def as_failure(error: CdiError) -> Failure:
    """Return an error in the form stored in outcomes and in the status."""
    return Failure.of(error)
