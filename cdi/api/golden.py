"""Settings and commands for golden images in the annotations ``cdi.kubevirt.io/golden.*`` of a DataImportCron.

The fields of a DataImportCron are those of KubeVirt's CDI; additional features are configured by these annotations.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cdi.api.annotation_values import Parser, boolean, one_of, parse_annotations, printable
from cdi.api.decode import JsonRecord, Range, decode
from cdi.api.errors import InvalidManifest
from cdi.api.names import GROUP, MAX_LABEL, MAX_NAME, is_dns_subdomain
from cdi.api.quantity import Quantity, human
from cdi.api.regular_expression import check_expression
from cdi.api.rules.durations import parse_duration
from cdi.api.rules.problems import Problem, truncate
from cdi.api.timestamps import parse_timestamp

if TYPE_CHECKING:
    from cdi.api.dataimportcron import GoldenVersion

PREFIX: Final = f"{GROUP}/golden."
MAX_CHANNELS: Final = 16
MAX_VERSIONS: Final = 100
"""Maximum number of versions in a history."""
MAX_EXPECT: Final = 256
"""Maximum length of `PROOF_EXPECT` in characters."""
MAX_REASON: Final = 1024
"""Maximum length of the reason of a revocation in characters."""
ALL: Final = "all"
"""As the version of `RELEASE`: every withheld version."""
PREVIOUS: Final = "previous"
"""As the version of `ROLLBACK`: the available version before the one that is offered."""
_MAX_CHANNELS_TEXT = 16 << 10
_MAX_AGE = 10 * 365 * 24 * 3600
_MAX_PROOF_TIMEOUT = 24 * 3600
_MIN_MEMORY = 64 << 20
_MAX_MEMORY = 64 << 30
KNOWN_ARCHITECTURES: Final = (
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x",
)  # fmt: skip
_VERSION = re.compile(r"[a-z0-9](?:[-a-z0-9.:]*[a-z0-9])?")

# --- settings ---------------------------------------------------------------------------------------------------

PROOF: Final = f"{PREFIX}proof"
"""``boot``: a version is offered only after a virtual machine has booted from it; ``none`` (the default)."""
PROOF_TIMEOUT: Final = f"{PREFIX}proofTimeout"
"""Duration, such as ``10m``."""
PROOF_EXPECT: Final = f"{PREFIX}proofExpect"
"""Regular expression; only a matching console line proves the boot."""
PROOF_MEMORY: Final = f"{PREFIX}proofMemory"
"""Memory of the virtual machine, a quantity."""
PROOF_FIRMWARE: Final = f"{PREFIX}proofFirmware"
"""One of auto (the default), bios and uefi."""
CHANNELS: Final = f"{PREFIX}channels"
"""JSON object from the name of a DataSource to its rule (`Channel`)."""
KEEP_FOR: Final = f"{PREFIX}keepFor"
"""Duration; an outdated version is kept at least that long after its import, beyond importsToKeep."""
KEEP_UNUSED_FOR: Final = f"{PREFIX}keepUnusedFor"
"""Duration; an outdated version is kept at least that long after it was last cloned."""
ARCHITECTURES: Final = f"{PREFIX}architectures"
"""Comma-separated OCI architectures, each imported into a DataSource of its own."""
RECORD_KEY: Final = f"{PREFIX}recordKey"
"""Name of the Secret with the private key that signs records of origin."""
PIN: Final = f"{PREFIX}pin"
"""Version (name, or digest or its prefix) that the managed DataSource offers until the annotation is removed."""
HOLD: Final = f"{PREFIX}hold"
"""``true``: polls record the newest digest, but nothing is imported and no DataSource changes."""

# --- commands, removed once they are carried out ----------------------------------------------------------------

ROLLBACK: Final = f"{PREFIX}rollback"
"""Version to return to, or ``previous``; newer ones are withheld."""
PROMOTE: Final = f"{PREFIX}promote"
"""``CHANNEL=VERSION``."""
REVOKE: Final = f"{PREFIX}revoke"
"""``VERSION`` or ``VERSION: reason``."""
DEPRECATE: Final = f"{PREFIX}deprecate"
"""``VERSION from=RFC3339 [endOfLife=RFC3339]``; ``VERSION from=never`` takes it back."""
RETRY: Final = f"{PREFIX}retry"
"""Version that failed, to be imported or proven again."""
RELEASE: Final = f"{PREFIX}release"
"""Withheld version, or ``all``, to be offered again."""
COMMANDS: Final = (ROLLBACK, PROMOTE, REVOKE, DEPRECATE, RETRY, RELEASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """Rule by which a further DataSource chooses a version."""

    after: int | None = None
    """Seconds that a version must have been offered; None for a channel without a rule by age."""
    behind: int | None = None
    """Number of available versions that are newer, such as 1 for the version before the latest."""
    proven: bool = False
    """Only versions whose boot proof succeeded."""
    manual: bool = False
    """Changes by promotion only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin(JsonRecord):
    """Golden version from which a volume descends, recorded at cloning."""

    namespace: str
    """Namespace of the DataImportCron."""
    cron: str
    version: str
    digest: str


def origin_of(version: GoldenVersion, *, namespace: str, cron: str) -> Origin:
    """Return the origin that is recorded on the objects of a version, and on every volume that descends from it."""
    return Origin(namespace=namespace, cron=cron, version=version.name, digest=version.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenSettings:
    """Values of the settings; defaults where an annotation is missing."""

    proof: Literal["none", "boot"] = "none"
    proof_timeout: int | None = None
    """Seconds; None for the default of the accelerator."""
    proof_expect: str | None = None
    proof_memory: int = 1 << 30
    """Bytes."""
    proof_firmware: Literal["auto", "bios", "uefi"] = "auto"
    channels: tuple[tuple[str, Channel], ...] = ()
    """By the name of the DataSource, in the order of the annotation."""
    keep_for: int = 0
    """Seconds."""
    keep_unused_for: int = 0
    """Seconds."""
    architectures: tuple[str, ...] = ()
    record_key: str | None = None
    pin: str | None = None
    hold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """Return to a version and withhold those that are newer."""

    version: str
    """Name, digest or beginning of the digest, or `PREVIOUS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Have a channel offer a version."""

    channel: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """Never offer a version again."""

    version: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deprecate:
    """Announce the deprecation and the end of life of a version, or take that back."""

    version: str
    since: dt.datetime | None = None
    """From then on clones are warned; None takes the deprecation back."""
    end_of_life: dt.datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Import or prove a failed version again."""

    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Offer a withheld version again."""

    version: str
    """Name, digest or beginning of the digest, or `ALL`."""


Command = Rollback | Promote | Revoke | Deprecate | Retry | Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """Commands in the annotations of a DataImportCron."""

    valid: tuple[tuple[str, Command], ...] = ()
    """By the name of the annotation, in the order of `COMMANDS`."""
    problems: tuple[Problem, ...] = ()
    """One for each invalid command; `field` is the name of the annotation."""


def parse_golden_settings(annotations: Mapping[str, str] | None) -> GoldenSettings:
    """Parse the settings; raise `InvalidManifest` with the problems of all settings and unknown names.

    Commands are ignored; see `parse_commands`.
    """
    settings = {name: text for name, text in (annotations or {}).items() if name not in COMMANDS}
    values, problems = parse_annotations(settings, PREFIX, _SETTINGS)
    if problems:
        text = "; ".join(f"{truncate(name, 200)}: {problem.message}" for name, problem in problems)
        raise InvalidManifest(text, where="metadata.annotations")
    return GoldenSettings(**{_FIELDS[name]: value for name, value in values.items()})


def parse_commands(annotations: Mapping[str, str] | None) -> Commands:
    """Parse the commands; an invalid one does not affect the others."""
    given = {name: annotations[name] for name in COMMANDS if name in annotations} if annotations else {}
    values, problems = parse_annotations(given, PREFIX, _COMMANDS)
    return Commands(
        valid=tuple((name, values[name.removeprefix(PREFIX)]) for name in given if name.removeprefix(PREFIX) in values),
        problems=tuple(problem for _, problem in problems),
    )


def command_label(annotation: str, value: str) -> str:
    """Return how messages name a command: with its value, by which a client tells whether its own one is meant."""
    return f"annotation {annotation}={json.dumps(truncate(value.strip(), 200), ensure_ascii=False)}"


def check_golden(
    annotations: Mapping[str, str] | None, field: str = "metadata.annotations", *, managed: str = ""
) -> Iterator[Problem]:
    """Yield a problem for each setting or command that is invalid or has an unknown name.

    Args:
        annotations: Annotations of a DataImportCron.
        field: Path of the annotations.
        managed: Name of the managed DataSource, which cannot be a channel as well.
    """
    values, problems = parse_annotations(annotations or {}, PREFIX, {**_SETTINGS, **_COMMANDS})
    for name, problem in problems:
        yield replace(problem, field=f"{field}[{truncate(name, 200)}]")
    if managed in dict(values.get("channels", ())):
        message = f"Invalid value: channel {managed!r} is the managed DataSource; choose another name"
        yield Problem(field=f"{field}[{CHANNELS}]", message=message)


def check_golden_change(
    before: Mapping[str, str] | None, after: Mapping[str, str] | None, *, managed: str = ""
) -> Iterator[Problem]:
    """Yield the problems that `check_golden` finds in the annotations that were added or changed.

    The controller removes a command that it has carried out, which must not fail because of another one.
    """
    earlier = before or {}
    changed = {name: text for name, text in (after or {}).items() if earlier.get(name) != text}
    yield from check_golden(changed, managed=managed)


def _duration(limit: int, *, lowest: int = 0) -> Callable[[str], int]:
    """Return a parser for a duration in whole seconds, rounded up."""

    def parse(text: str) -> int:
        seconds = parse_duration(text)
        if seconds is None:
            raise ValueError(f"{truncate(text, 40)!r} is not a duration such as 720h or 10m")
        if not lowest <= seconds <= limit:
            raise ValueError(f"{truncate(text, 40)!r} is not from {lowest}s to {limit // 3600}h")
        return math.ceil(seconds)

    return parse


_age = _duration(_MAX_AGE)


def _memory(text: str) -> int:
    size = Quantity.parse(text).bytes
    if not _MIN_MEMORY <= size <= _MAX_MEMORY:
        raise ValueError(f"{truncate(text, 40)!r} is not from {human(_MIN_MEMORY)} to {human(_MAX_MEMORY)}")
    return size


def _expression(text: str) -> str:
    check_expression(text, MAX_EXPECT)
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChannelRule:
    after: str | None = None
    behind: Annotated[int, Range(at_least=0, at_most=MAX_VERSIONS - 1)] | None = None
    proven: bool = False
    manual: bool = False


def _channels(text: str) -> tuple[tuple[str, Channel], ...]:
    if len(text) > _MAX_CHANNELS_TEXT:
        raise ValueError(f"it is longer than {_MAX_CHANNELS_TEXT} characters")
    rules = decode(dict[str, _ChannelRule], text)
    if len(rules) > MAX_CHANNELS:
        raise ValueError(f"it has {len(rules)} channels, at most {MAX_CHANNELS} are allowed")
    return tuple((_data_source(name), _channel(name, rule)) for name, rule in rules.items())


def _channel(name: str, rule: _ChannelRule) -> Channel:
    if rule.manual and (rule.after is not None or rule.behind is not None or rule.proven):
        raise ValueError(f"channel {name!r} is manual and has another rule as well; remove one of them")
    after = None if rule.after is None else _age(rule.after)
    return Channel(after=after, behind=rule.behind, proven=rule.proven, manual=rule.manual)


def _data_source(name: str) -> str:
    if len(name) > MAX_LABEL or not is_dns_subdomain(name):
        raise ValueError(f"{truncate(name, 40)!r} is not the name of a DataSource of at most {MAX_LABEL} characters")
    return name


def _architectures(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in truncate(text, 200).split(","))
    for name in names:
        if name not in KNOWN_ARCHITECTURES:
            raise ValueError(f"{name[:40]!r} is not an architecture: {', '.join(KNOWN_ARCHITECTURES)}")
    if len(set(names)) < len(names):
        raise ValueError("it names an architecture twice")
    return names


def _secret(text: str) -> str:
    if not is_dns_subdomain(text):
        raise ValueError(f"{truncate(text, 40)!r} is not the name of a Secret")
    return text


def _version(text: str) -> str:
    if len(text) > MAX_NAME or not _VERSION.fullmatch(text):
        raise ValueError(f"{truncate(text, 40)!r} is not the name or digest of a version")
    return text


def _promote(text: str) -> Promote:
    channel, equals, version = text.partition("=")
    if not equals:
        raise ValueError(f"{truncate(text, 40)!r} is not CHANNEL=VERSION")
    return Promote(channel=_data_source(channel.strip()), version=_version(version.strip()))


def _revoke(text: str) -> Revoke:
    # A digest contains a colon too, but no space after it.
    version, _, reason = text.partition(": ")
    if len(reason) > MAX_REASON:
        raise ValueError(f"the reason is longer than {MAX_REASON} characters")
    reason = reason.strip()
    return Revoke(version=_version(version.strip()), reason=printable(reason) if reason else None)


def _deprecate(text: str) -> Deprecate:
    form = "VERSION from=RFC3339 [endOfLife=RFC3339] or VERSION from=never"
    version, *words = text.split()[:4] or [""]
    dates = dict(word.partition("=")[::2] for word in words)
    if len(dates) != len(words) or "from" not in dates or dates.keys() - {"from", "endOfLife"}:
        raise ValueError(f"{truncate(text)!r} is not {form}")
    if dates["from"] == "never":
        if len(dates) > 1:
            raise ValueError("a version that is never deprecated has no end of life")
        return Deprecate(version=_version(version))
    moments = {name: parse_timestamp(date) for name, date in dates.items()}
    for name, moment in moments.items():
        if moment is None:
            raise ValueError(f"{name} {truncate(dates[name], 40)!r} is not a time such as 2027-01-31T00:00:00Z")
    since, end = moments["from"], moments.get("endOfLife")
    if since is not None and end is not None and end < since:
        raise ValueError("endOfLife is before from")
    return Deprecate(version=_version(version), since=since, end_of_life=end)


_SETTINGS: dict[str, Parser] = {
    "proof": one_of("none", "boot"),
    "proofTimeout": _duration(_MAX_PROOF_TIMEOUT, lowest=1),
    "proofExpect": _expression,
    "proofMemory": _memory,
    "proofFirmware": one_of("auto", "bios", "uefi"),
    "channels": _channels,
    "keepFor": _age,
    "keepUnusedFor": _age,
    "architectures": _architectures,
    "recordKey": _secret,
    "pin": _version,
    "hold": boolean,
}
_FIELDS = {name: re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name) for name in _SETTINGS}
"""Fields of `GoldenSettings`."""
_COMMANDS: dict[str, Parser] = {
    "rollback": lambda text: Rollback(version=_version(text)),
    "promote": _promote,
    "revoke": _revoke,
    "deprecate": _deprecate,
    "retry": lambda text: Retry(version=_version(text)),
    "release": lambda text: Release(version=_version(text)),
}
