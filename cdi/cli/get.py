"""The ``cdi get`` command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from cdi.api.errors import KindNotServed, NotFound
from cdi.api.kinds import KINDS, Column, kind_named
from cdi.api.status_detail import status_detail
from cdi.cli.session import Session, references, subcommand
from cdi.cli.show import age, document, echo_lines, one_or_list, printable, select, table
from cdi.store.base import Key, Object

ALL = ("datavolumes", "persistentvolumeclaims", "datasources")
_MAX_POLL_INTERVAL = 60.0
"""Seconds of each poll of a watch."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A column: its header and a function that returns an object's cell."""

    header: str
    value: Callable[[Object], str]


@subcommand("get")
@click.argument("what", nargs=-1, required=True)
@click.option("-A", "--all-namespaces", is_flag=True)
@click.option("-o", "--output", type=click.Choice(["table", "wide", "json", "yaml", "name"]), default="table")
@click.option("-w", "--watch", is_flag=True, help="Print every change until Ctrl-C.")
@click.option("--no-headers", is_flag=True)
@click.option("--ignore-not-found", is_flag=True, help="Exit 0 if a named object does not exist.")
def command(
    session: Session,
    *,
    what: tuple[str, ...],
    all_namespaces: bool,
    output: str,
    watch: bool,
    no_headers: bool,
    ignore_not_found: bool,
) -> None:
    """List objects (dv, pvc, datasource, secret …), as KIND NAME …, KIND/NAME …, a list such as dv,pvc, or all."""
    wanted = references((",".join(ALL),) if what == ("all",) else what)
    namespace = None if all_namespaces else session.namespace

    def read() -> list[Object]:
        found: list[Object] = []
        for plural, name in wanted:
            if name is None:
                found += session.store.list(plural, namespace)
                continue
            try:
                found.append(session.store.get(Key.of(plural, session.namespace, name)))
            except NotFound as error:
                if isinstance(error, KindNotServed) or not (ignore_not_found or watch):
                    raise
        return found

    items = read()
    _show(items, output, namespaces=all_namespaces, headers=not no_headers, named=any(n for _, n in wanted))
    if not items and output in ("table", "wide") and not ignore_not_found and not watch:
        kinds = ", ".join(dict.fromkeys(plural for plural, _ in wanted))
        where = "" if all_namespaces else f" in namespace {session.namespace!r}"
        click.echo(f"no {kinds} found{where}", err=True)
    if watch:
        _watch(session, wanted, namespace, output, namespaces=all_namespaces, seen=items)


def _watch(
    session: Session,
    wanted: Sequence[tuple[str, str | None]],
    namespace: str | None,
    output: str,
    *,
    namespaces: bool,
    seen: Sequence[Object],
) -> None:
    """Show each object that changes, until interrupted; deletions are not shown."""
    versions = {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in seen}
    plurals = list(dict.fromkeys(plural for plural, _ in wanted))
    with session.changes(plurals, namespace) as changes:
        while True:
            for change in changes.poll(_MAX_POLL_INTERVAL):
                key, metadata = change.key, change.body["metadata"]
                if change.type == "DELETED" or (namespace is not None and key.namespace not in ("", namespace)):
                    continue
                if not any(key.plural == plural and name in (None, key.name) for plural, name in wanted):
                    continue
                if versions.get(metadata["uid"]) != metadata["resourceVersion"]:
                    versions[metadata["uid"]] = metadata["resourceVersion"]
                    _show([change.body], output, namespaces=namespaces, headers=False, named=True)


def _show(items: Sequence[Object], output: str, *, namespaces: bool, headers: bool, named: bool) -> None:
    if output in ("json", "yaml"):
        body = one_or_list(items) if named and items else {"apiVersion": "v1", "kind": "List", "items": list(items)}
        click.echo(document(body, output))
        return
    if output == "name":
        for item in items:
            click.echo(f"{item['kind'].lower()}/{item['metadata']['name']}")
        return
    kinds = dict.fromkeys(item["kind"] for item in items)
    for index, kind in enumerate(kinds):
        rows = [item for item in items if item["kind"] == kind]
        columns = _columns(kind, wide=output == "wide", namespaces=namespaces, prefix=len(kinds) > 1)
        lines = table([c.header for c in columns], [[c.value(item) for c in columns] for item in rows])
        if index and headers:
            click.echo()
        echo_lines(lines if headers else lines[1:])


def _columns(name: str, *, wide: bool, namespaces: bool, prefix: bool) -> list[Shown]:
    """Return the printer columns of a kind's definition, as an API server would apply them."""
    defined = next((kind for kind in KINDS if kind.kind == name), None)
    columns = list(defined.columns) if defined is not None else []
    if not any(column.type == "date" for column in columns):
        columns.append(Column(name="Age", type="date", path=".metadata.creationTimestamp"))
    word = f"{kind_named(name).singular}/" if prefix else ""
    shown = [Shown("NAME", lambda item: word + item["metadata"]["name"])]
    if namespaces and kind_named(name).namespaced:
        shown.insert(0, Shown("NAMESPACE", lambda item: str(item["metadata"].get("namespace", ""))))
    shown += [Shown(column.name.upper(), _cell(column)) for column in columns]
    if wide and name == "DataVolume":
        shown += [Shown("SIZE", _size), Shown("SOURCE", _source), Shown("MESSAGE", _message)]
    return shown


def _cell(column: Column) -> Callable[[Object], str]:
    if column.type == "date":
        return lambda item: age(select(item, column.path))
    return lambda item: select(item, column.path)


def _size(item: Object) -> str:
    spec = item.get("spec") or {}
    return select(spec.get("storage") or spec.get("pvc") or {}, ".resources.requests.storage")


def _source(item: Object) -> str:
    spec = item.get("spec") or {}
    source = spec.get("source") or {}
    if reference := spec.get("sourceRef"):
        return f"{reference.get('kind', 'DataSource')}/{reference.get('name', '')}"
    for kind, body in source.items():
        names = body or {}
        return str(names.get("url") or "/".join(filter(None, (names.get("namespace"), names.get("name")))) or kind)
    return ""


def _message(item: Object) -> str:
    reason, message = status_detail(item)
    return printable(message or reason)
