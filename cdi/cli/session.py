"""What every command shares: where the objects are, the namespace, and what a word on the command line names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cdi.api.errors import UsageError
from cdi.store.kinds import kind_of

if TYPE_CHECKING:
    from cdi.runtime.embedded import Embedded
    from cdi.store.base import Store

F = TypeVar("F", bound=Callable[..., Any])


class Session:
    """One run of the command line."""

    def __init__(self) -> None:
        self.root: Path | None = None
        """``--home``; None leaves it to the environment."""
        self.namespace: str = "default"
        self.debug = False
        self.after_interrupt: str | None = None
        """What to tell who presses Ctrl-C: what goes on, and how to look at it."""
        self._embedded: Embedded | None = None

    @property
    def embedded(self) -> Embedded:
        """The objects of this machine."""
        if self._embedded is None:
            from cdi.runtime.embedded import Embedded

            self._embedded = Embedded(self.root)
        return self._embedded

    @property
    def store(self) -> Store:
        """The same objects, to be looked at and nothing else: reading them needs no models, which take longer."""
        from cdi.runtime.home import Home
        from cdi.store.local import LocalStore

        home = Home.find(self.root)
        home.make()
        return LocalStore(home.objects)

    def goes_on(self, name: str) -> None:
        """From here on, Ctrl-C leaves the work on this DataVolume running."""
        options = "" if self.namespace == "default" else f" -n {self.namespace}"
        self.after_interrupt = (
            f"nothing, {name} goes on in the background; cdi wait dv/{name}{options} waits for it,"
            f" cdi delete dv/{name}{options} ends it"
        )


def _set(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:
            setattr(context.ensure_object(Session), field, value)

    return callback


def common_options(function: F) -> F:
    """``--home``, ``-n`` and ``--debug``, which may stand before or after the command's name."""
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, callback=_set("debug"), help="Show tracebacks."),
        click.option(
            "--home",
            type=click.Path(path_type=Path, file_okay=False),
            expose_value=False,
            callback=_set("root"),
            help="Instead of CDI_HOME.",
        ),
        click.option("-n", "--namespace", expose_value=False, callback=_set("namespace"), help="Instead of default."),
    ):
        function = option(function)
    return function


def subcommand(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command with the common options, given the `Session` as its first argument."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            return function(click.get_current_context().ensure_object(Session), *arguments, **options)

        return click.command(name, cls=click.Command, **attributes)(common_options(call))

    return decorate


def references(words: tuple[str, ...], *, kind: str | None = None) -> list[tuple[str, str | None]]:
    """``dv NAME …``, ``dv/NAME …``, ``dv,pvc`` as pairs of a kind's plural and a name, None for all of that kind.

    With `kind`, words without a slash are names of that kind.  Raises `UsageError`, and `NotFound` for a kind.
    """
    if not words:
        raise UsageError("nothing is named", remedy="name a kind (dv, pvc, datasource …) or KIND/NAME")
    if any("/" in word for word in words) or kind is not None:
        found: list[tuple[str, str | None]] = []
        for word in words:
            before, slash, name = word.rpartition("/")
            if not slash and kind is None:
                raise UsageError(f"{word!r} is no KIND/NAME", remedy="name all as KIND/NAME, or one kind and its names")
            if not name:
                raise UsageError(f"{word!r} has no name", remedy="KIND/NAME")
            found.append((kind_of(before).plural if slash else kind_of(kind or "").plural, name))
        return found
    plurals = [kind_of(word).plural for word in words[0].split(",")]
    return [(plural, name) for plural in dict.fromkeys(plurals) for name in (words[1:] or (None,))]


def one_datavolume(word: str) -> str:
    """The name in ``dv/NAME`` or ``NAME``; raises `UsageError` for any other kind."""
    ((plural, name),) = references((word,), kind="dv")
    if plural != "datavolumes" or name is None:
        raise UsageError(f"{word!r} is no DataVolume", remedy="dv/NAME")
    return name
