"""Errors as they are remembered."""

from __future__ import annotations

from cdi.api.errors import CdiError
from cdi.api.job import Failure


def as_failure(error: CdiError) -> Failure:
    """An error as it stands in an outcome and in status."""
    return Failure.of(error)
