"""Generated reference pages of errors and of the API's fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cdi.api import annotations as state
from cdi.api.annotation_types import Annotation
from cdi.api.cel.expressions import RULES
from cdi.api.errors import CdiError, Retry, all_errors
from cdi.api.kinds import KINDS, Resource
from cdi.api.names import GROUP
from cdi.api.schema import Schema, object_schema

_END_OF_TABLE = "<!-- end of table -->"
_RETRY = {
    Retry.NEVER: "no",
    Retry.BACKOFF: "yes, with exponential backoff",
    Retry.ON_CHANGE: "after an external change",
}


def errors_page() -> str:
    """Return the content of ``docs/reference/errors.md``."""
    lines = [
        "# Errors",
        "",
        "Every failure has a code. It is part of the message, `error[CODE]: what is wrong (where). Try: remedy`, and",
        "is the reason of the DataVolume's condition. A failure that is not retried sets the phase to Failed; a",
        "command ends with the exit status.",
        "",
        "| code | meaning | retried | exit | remedy |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{error.__name__}` | {_cell(_summary(error))} | {_RETRY[error.retry]} | {error.exit_status} "
        f"| {_cell(error.default_remedy)} |"
        for error in all_errors()
        if error.__module__ == CdiError.__module__
    ]
    return "\n".join(lines) + "\n"


def with_state_tables(page: str) -> str:
    """Return ``docs/reference/state.md`` with the tables between its markers written again."""
    for name, rows in (("internal", state.INTERNAL), ("pods", state.PODS), ("golden", state.GOLDEN)):
        begin = f"<!-- table {name}: made by scripts/generate out of cdi/api/annotations.py -->\n"
        before, _, rest = page.partition(begin)
        page = "".join((before, begin, "\n", _state_table(rows), "\n", _END_OF_TABLE, rest.partition(_END_OF_TABLE)[2]))
    return page


def _state_table(rows: Iterable[Annotation]) -> str:
    lines = ["| annotation | on | written by | read by | content | if it is lost |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{row.key.removeprefix(f'{GROUP}/')}`{row.suffix} | {row.on} | {row.written_by} | {row.read_by} "
        f"| {_cell(row.content)} | {_cell(row.recovery)} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """Return the content of ``docs/reference/api.md``."""
    own = [kind for kind in KINDS if kind.group]
    lines = ["# API reference", ""]
    lines += [f"- [{kind.kind}](#{kind.singular})" for kind in own]
    for kind in own:
        lines += _kind(kind)
    return "\n".join(lines) + "\n"


def _kind(kind: Resource) -> list[str]:
    schema = object_schema(kind)
    facts = [f"`{kind.api_version}`", "namespaced" if kind.namespaced else "cluster-scoped", f"`{kind.plural}`"]
    facts += [f"`{name}`" for name in kind.short_names if name != kind.plural]
    return [
        "",
        f"## {kind.kind}",
        "",
        schema["description"],
        "",
        ", ".join(facts) + ("" if kind.defined else ". Served by CDI's aggregated API server; it has no CRD."),
        "",
        "| field | type | |",
        "|---|---|---|",
        *_fields(schema, "", skip=("apiVersion", "kind", "metadata")),
    ]


def _fields(schema: Schema, path: str, skip: tuple[str, ...] = ()) -> Iterator[str]:
    rules = {rule["rule"] for rule in schema.get(RULES, ())}
    for name, part in schema.get("properties", {}).items():
        if name in skip:
            continue
        field = f"{path}.{name}" if path else name
        required = name in schema.get("required", ()) or f"has(self.{name})" in rules
        needed = " **Required.**" if required else ""
        yield f"| `{field}` | {_type(part)} | {_cell(part.get('description', ''))}{needed} |"
        inner = part.get("items", part)
        if inner is not part:
            field += "[]"
        elif isinstance(part.get("additionalProperties"), dict):
            inner, field = part["additionalProperties"], f"{field}.*"
        yield from _fields(inner, field)


def _type(schema: Schema) -> str:
    if "x-kubernetes-int-or-string" in schema:
        return "quantity"
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map of {_type(schema['additionalProperties'])}"
    return str(schema["type"])


def _summary(error: type[CdiError]) -> str:
    return " ".join((error.__doc__ or "").split())


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
