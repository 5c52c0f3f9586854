"""Names of golden images as arguments, with completion."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from cdi.api.errors import CdiError, UsageError
from cdi.api.kinds import kind_named
from cdi.cli.session import Session

F = TypeVar("F", bound=Callable[..., Any])
_MAX_COMPLETIONS = 200


class GoldenName(click.ParamType[str, Any]):
    """``dic/NAME`` or ``NAME``, converted to the name."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002  click's signature
        kind, slash, name = str(value).rpartition("/")
        if (slash and kind_named(kind).plural != "dataimportcrons") or not name:
            raise UsageError(f"{value!r} is not a golden image", remedy="give the name of a DataImportCron")
        return name

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002  click's signature
        session = ctx.find_object(Session) or Session()
        with contextlib.suppress(CdiError):  # completion prints nothing but names
            found = [body["metadata"]["name"] for body in session.store.list("dataimportcrons", session.namespace)]
            return [CompletionItem(name) for name in found if name.startswith(incomplete)][:_MAX_COMPLETIONS]
        return []


def name_argument(function: F) -> F:
    """Add the argument NAME, a golden image."""
    return click.argument("name", type=GoldenName())(function)
