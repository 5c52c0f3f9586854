"""The text of ``cdi explain`` for a clone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cdi.cli.inspect import size as words_of_size

if TYPE_CHECKING:
    from cdi.explain.clone_facts import CloneFacts


def clone_lines(clone: CloneFacts) -> Iterator[tuple[str, str]]:
    """Yield a label and a text for each fact about a clone."""
    yield "clone of", clone.source
    if clone.size is not None:
        yield "source size", words_of_size(clone.size)
    if clone.allocated is not None:
        yield "source data", words_of_size(clone.allocated)
    yield "strategy", clone.why
    for one in clone.fallbacks:
        yield "fallback", f"{one.reason}: {one.message}"
    for cost in clone.costs:
        yield "cost", cost
