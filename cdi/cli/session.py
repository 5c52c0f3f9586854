"""State shared by all commands: backend, namespace, and the parsing of object references."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cdi.api.errors import UsageError
from cdi.api.kinds import kind_named

if TYPE_CHECKING:
    from cdi.client.backend import Backend, Reader
    from cdi.local.backend import LocalBackend
    from cdi.remote.backend import Cluster
    from cdi.store.base import Watch
    from cdi.store.file_store import LocalStore

F = TypeVar("F", bound=Callable[..., Any])


class Session:
    """One run of the command line, against this machine or against the cluster that its options name."""

    def __init__(self, program: str = "cdi", *, cluster: bool = False) -> None:
        """Create a session; `cluster` selects the cluster unless an option selects this machine."""
        self.program = program
        self.root: Path | None = None
        """The value of ``--home``; None leaves it to the environment."""
        self.kubeconfig: Path | None = None
        self.context: str | None = None
        self.cluster = False
        """The value of ``--cluster``: use the current context, or the pod's own service account."""
        self.debug = False
        self.after_interrupt: str | None = None
        """The remedy to show after Ctrl-C: what continues, and how to follow or end it."""
        self.patience: float | None = None
        """Seconds to retry requests to an unreachable API server; set it before the first request."""
        self._always_cluster = cluster
        self._namespace: str | None = None
        self._embedded: LocalBackend | None = None
        self._remote: Cluster | None = None

    @property
    def namespace(self) -> str:
        """The namespace: ``-n``, else that of the context, else ``default``."""
        if self._namespace is None:
            self._namespace = self.remote.namespace if self.in_cluster else "default"
        return self._namespace

    @namespace.setter
    def namespace(self, name: str) -> None:
        self._namespace = name

    @property
    def in_cluster(self) -> bool:
        """Return whether the command acts on a cluster.

        Raises:
            UsageError: the options name both this machine and a cluster.
        """
        named = self.cluster or self.kubeconfig is not None or self.context is not None
        if named and (self.root is not None or os.environ.get("CDI_HOME")):
            machine = "--home" if self.root is not None else "CDI_HOME"
            raise UsageError(
                f"{machine} selects this machine, but --kubeconfig, --context and --cluster select a cluster",
                remedy=f"omit {machine}" if machine == "--home" else "unset CDI_HOME for this command",
            )
        return named or (self._always_cluster and self.root is None)

    @property
    def backend(self) -> Backend:
        """The backend that holds the objects."""
        return self.remote if self.in_cluster else self.embedded

    @property
    def embedded(self) -> LocalBackend:
        """The backend of this machine; commands that support no other use `here`."""
        if self._embedded is None:
            from cdi.local.backend import LocalBackend

            self._embedded = LocalBackend(self.root)
        return self._embedded

    @property
    def remote(self) -> Cluster:
        """The backend of the cluster.

        Raises:
            ClusterError: the configuration of the cluster cannot be used.
        """
        if self._remote is None:
            from cdi.remote.backend import Cluster

            self._remote = Cluster.connect(self.kubeconfig, self.context, patience=self.patience)
        return self._remote

    def here(self, what: str, remedy: str) -> LocalBackend:
        """Return this machine's backend, for commands that work only there.

        Raises:
            UsageError: the command acts on a cluster; `what` cannot be done there, and `remedy` says what can.
        """
        if self.in_cluster:
            raise UsageError(f"{what} is not supported in a cluster, only on this machine", remedy=remedy)
        return self.embedded

    @property
    def store(self) -> Reader:
        """The backend's objects, read-only; reading them needs no models, which take long to import."""
        return self.remote.store if self.in_cluster else self._local_store()

    def _local_store(self) -> LocalStore:
        from cdi.local.home import Home
        from cdi.store.file_store import LocalStore

        home = Home.find(self.root)
        home.check()
        return LocalStore(home.objects)

    def changes(self, plurals: Collection[str], namespace: str | None) -> Watch:
        """Return `Backend.changes`, without importing models."""
        return self.remote.changes(plurals, namespace) if self.in_cluster else self._local_store().watch(plurals)

    def resume_hint(self, name: str) -> None:
        """Make Ctrl-C report that the work on this DataVolume continues in the background."""
        options = self.options()
        where = "in the cluster" if self.in_cluster else "in the background"
        self.after_interrupt = (
            f"nothing, {name} continues {where}; {self.program} wait dv/{name}{options} waits for it,"
            f" {self.program} delete dv/{name}{options} cancels it"
        )

    def options(self) -> str:
        """Return the options with which another command acts on the same objects."""
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
        """Close connections."""
        if self._remote is not None:
            self._remote.close()


def _set(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:
            setattr(context.ensure_object(Session), field, value)

    return callback


def common_options(function: F) -> F:
    """Add ``--home``, the cluster options, ``-n`` and ``--debug``, before or after the command's name."""
    path = click.Path(path_type=Path)
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, callback=_set("debug"), help="Show tracebacks."),
        click.option(
            "--home",
            type=click.Path(path_type=Path, file_okay=False),
            expose_value=False,
            callback=_set("root"),
            help="Store volumes and objects in this directory instead of CDI_HOME.",
        ),
        click.option(
            "--cluster",
            is_flag=True,
            expose_value=False,
            callback=_set("cluster"),
            help="Act on the cluster of the current context, or of this pod's service account.",
        ),
        click.option(
            "--context",
            metavar="NAME",
            expose_value=False,
            callback=_set("context"),
            help="Act on the cluster of this context.",
        ),
        click.option(
            "--kubeconfig",
            type=path,
            metavar="FILE",
            expose_value=False,
            callback=_set("kubeconfig"),
            help="Act on the cluster of this kubeconfig.",
        ),
        click.option(
            "-n",
            "--namespace",
            expose_value=False,
            callback=_set("namespace"),
            help="Use this namespace; default: that of the context, or default.",
        ),
    ):
        function = option(function)
    return function


def subcommand(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator for a click command with the common options and the `Session` as first argument."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            return function(click.get_current_context().ensure_object(Session), *arguments, **options)

        return click.command(name, cls=click.Command, **attributes)(common_options(call))

    return decorate


def references(words: tuple[str, ...], *, kind: str | None = None) -> list[tuple[str, str | None]]:
    """Parse ``dv NAME …``, ``dv/NAME …`` or ``dv,pvc`` into pairs of a plural and a name.

    A name of None means all objects of that kind. With `kind`, words without a slash are names of that kind.

    Raises:
        UsageError: the words are malformed.
        NotFound: there is no such kind.
    """
    if not words:
        raise UsageError("no object is given", remedy="give a kind (dv, pvc, datasource …) or KIND/NAME")
    if any("/" in word for word in words) or kind is not None:
        found: list[tuple[str, str | None]] = []
        for word in words:
            before, slash, name = word.rpartition("/")
            if not slash and kind is None:
                raise UsageError(
                    f"{word!r} is not KIND/NAME", remedy="give every object as KIND/NAME, or one kind and its names"
                )
            if not name:
                raise UsageError(f"{word!r} has no name", remedy="give KIND/NAME")
            found.append((kind_named(before).plural if slash else kind_named(kind or "").plural, name))
        return found
    plurals = [kind_named(word).plural for word in words[0].split(",")]
    return [(plural, name) for plural in dict.fromkeys(plurals) for name in (words[1:] or (None,))]


def one_datavolume(word: str) -> str:
    """Return the name in ``dv/NAME`` or ``NAME``.

    Raises:
        UsageError: the word names another kind.
    """
    ((plural, name),) = references((word,), kind="dv")
    if plural != "datavolumes" or name is None:
        raise UsageError(f"{word!r} is not a DataVolume", remedy="give dv/NAME")
    return name
