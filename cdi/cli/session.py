"""What every command shares: where the objects are, the namespace, and what a word on the command line names."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cdi.api.errors import UsageError
from cdi.store.kinds import kind_of

if TYPE_CHECKING:
    from cdi.runtime.backend import Backend, Reader
    from cdi.runtime.cluster.backend import Cluster
    from cdi.runtime.embedded import Embedded
    from cdi.store.base import Watch
    from cdi.store.local import LocalStore

F = TypeVar("F", bound=Callable[..., Any])


class Session:
    """One run of the command line: over this machine, or over the cluster that its options name."""

    def __init__(self, program: str = "cdi", *, cluster: bool = False) -> None:
        """`cluster` is for a program that is about a cluster even where no option says so."""
        self.program = program
        self.root: Path | None = None
        """``--home``; None leaves it to the environment."""
        self.kubeconfig: Path | None = None
        self.context: str | None = None
        self.cluster = False
        """``--cluster``: the current context, or the pod's own service account."""
        self.debug = False
        self.after_interrupt: str | None = None
        """What to tell who presses Ctrl-C: what goes on, and how to look at it."""
        self.patience: float | None = None
        """Seconds that a request to a cluster's server that is away is tried for; set before it is asked."""
        self._always_cluster = cluster
        self._namespace: str | None = None
        self._embedded: Embedded | None = None
        self._remote: Cluster | None = None

    @property
    def namespace(self) -> str:
        """``-n``, else the context's own, else ``default``."""
        if self._namespace is None:
            self._namespace = self.remote.namespace if self.in_cluster else "default"
        return self._namespace

    @namespace.setter
    def namespace(self, name: str) -> None:
        self._namespace = name

    @property
    def in_cluster(self) -> bool:
        """Whether the command is about a cluster.  Raises `UsageError` where the options say both."""
        named = self.cluster or self.kubeconfig is not None or self.context is not None
        if named and (self.root is not None or os.environ.get("CDI_HOME")):
            machine = "--home" if self.root is not None else "CDI_HOME"
            raise UsageError(
                f"{machine} is for this machine, and --kubeconfig, --context and --cluster are for a cluster",
                remedy=f"leave {machine} out" if machine == "--home" else "unset CDI_HOME for this command",
            )
        return named or (self._always_cluster and self.root is None)

    @property
    def backend(self) -> Backend:
        """Where the objects are."""
        return self.remote if self.in_cluster else self.embedded

    @property
    def embedded(self) -> Embedded:
        """The objects of this machine; `here` is for commands that know no others."""
        if self._embedded is None:
            from cdi.runtime.embedded import Embedded

            self._embedded = Embedded(self.root)
        return self._embedded

    @property
    def remote(self) -> Cluster:
        """The cluster.  Raises `ClusterError`."""
        if self._remote is None:
            from cdi.runtime.cluster.backend import Cluster

            self._remote = Cluster.connect(self.kubeconfig, self.context, patience=self.patience)
        return self._remote

    def here(self, what: str, remedy: str) -> Embedded:
        """The objects of this machine, for `what` can be done with no others; raises `UsageError` in a cluster."""
        if self.in_cluster:
            raise UsageError(f"{what} works on this machine only, not yet in a cluster", remedy=remedy)
        return self.embedded

    @property
    def store(self) -> Reader:
        """The same objects, to be looked at and nothing else: reading them needs no models, which take longer."""
        return self.remote.store if self.in_cluster else self._local_store()

    def _local_store(self) -> LocalStore:
        from cdi.runtime.home import Home
        from cdi.store.local import LocalStore

        home = Home.find(self.root)
        home.check()
        return LocalStore(home.objects)

    def changes(self, plurals: Collection[str], namespace: str | None) -> Watch:
        """As `Backend.changes`, without models."""
        return self.remote.changes(plurals, namespace) if self.in_cluster else self._local_store().watch(plurals)

    def goes_on(self, name: str) -> None:
        """From here on, Ctrl-C leaves the work on this DataVolume running."""
        options = self.options()
        where = "in the cluster" if self.in_cluster else "in the background"
        self.after_interrupt = (
            f"nothing, {name} goes on {where}; {self.program} wait dv/{name}{options} waits for it,"
            f" {self.program} delete dv/{name}{options} ends it"
        )

    def options(self) -> str:
        """What another command needs to be about the same objects."""
        words = []
        if self.kubeconfig is not None:
            words += ["--kubeconfig", str(self.kubeconfig)]
        if self.context is not None:
            words += ["--context", self.context]
        if self.cluster and not words:
            words.append("--cluster")
        if self.namespace != "default":
            words += ["-n", self.namespace]
        return "".join(f" {shlex.quote(word)}" for word in words)

    def close(self) -> None:
        """Let go of connections."""
        if self._remote is not None:
            self._remote.close()


def _set(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:
            setattr(context.ensure_object(Session), field, value)

    return callback


def common_options(function: F) -> F:
    """``--home``, the cluster's, ``-n`` and ``--debug``, which may stand before or after the command's name."""
    path = click.Path(path_type=Path)
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, callback=_set("debug"), help="Show tracebacks."),
        click.option(
            "--home",
            type=click.Path(path_type=Path, file_okay=False),
            expose_value=False,
            callback=_set("root"),
            help="Instead of CDI_HOME.",
        ),
        click.option(
            "--cluster",
            is_flag=True,
            expose_value=False,
            callback=_set("cluster"),
            help="Act on the cluster of the current context, or of this pod.",
        ),
        click.option(
            "--context", metavar="NAME", expose_value=False, callback=_set("context"), help="Act on this one's cluster."
        ),
        click.option(
            "--kubeconfig",
            type=path,
            metavar="FILE",
            expose_value=False,
            callback=_set("kubeconfig"),
            help="Act on this file's cluster.",
        ),
        click.option(
            "-n",
            "--namespace",
            expose_value=False,
            callback=_set("namespace"),
            help="Instead of default, or of the context's.",
        ),
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
