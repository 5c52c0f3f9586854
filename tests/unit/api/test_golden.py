"""Tests of the annotations that configure golden images."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api import golden
from cdi.api.errors import InvalidManifest
from cdi.api.golden import (
    Channel,
    Command,
    Deprecate,
    GoldenSettings,
    Origin,
    Promote,
    Release,
    Retry,
    Revoke,
    Rollback,
    check_golden,
    check_golden_change,
    parse_commands,
    parse_golden_settings,
)

DAY = 24 * 3600
JANUARY = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)


def setting(name: str, text: str) -> GoldenSettings:
    return parse_golden_settings({golden.PREFIX + name: text})


@pytest.mark.parametrize("annotations", [None, {}, {"cdi.kubevirt.io/storage.import.lastCronTime": "x"}])
def test_without_annotations_the_settings_are_the_defaults(annotations: dict[str, str] | None) -> None:
    assert parse_golden_settings(annotations) == GoldenSettings()


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("proof", "boot", "proof", "boot"),
        ("proof", " none ", "proof", "none"),
        ("proofTimeout", "10m", "proof_timeout", 600),
        ("proofTimeout", "1.5s", "proof_timeout", 2),
        ("proofExpect", "login: $", "proof_expect", "login: $"),
        ("proofExpect", r"(?i)(foo.*)?bar[+*(]+\)+", "proof_expect", r"(?i)(foo.*)?bar[+*(]+\)+"),
        ("proofMemory", "512Mi", "proof_memory", 512 << 20),
        ("proofFirmware", "uefi", "proof_firmware", "uefi"),
        ("keepFor", "720h", "keep_for", 30 * DAY),
        ("keepUnusedFor", "0", "keep_unused_for", 0),
        ("architectures", "amd64, arm64,s390x", "architectures", ("amd64", "arm64", "s390x")),
        ("recordKey", "record-key", "record_key", "record-key"),
        ("pin", "fedora-0123456789ab", "pin", "fedora-0123456789ab"),
        ("pin", "sha256:0123", "pin", "sha256:0123"),
        ("hold", "true", "hold", True),
        ("hold", "false", "hold", False),
        ("channels", "{}", "channels", ()),
        (
            "channels",
            '{"stable": {"after": "168h", "proven": true}, "n-1": {"behind": 1}, "prod": {"manual": true}}',
            "channels",
            (
                ("stable", Channel(after=7 * DAY, proven=True)),
                ("n-1", Channel(behind=1)),
                ("prod", Channel(manual=True)),
            ),
        ),
    ],
)
def test_settings_are_parsed(name: str, text: str, field: str, value: object) -> None:
    assert getattr(setting(name, text), field) == value
    assert not list(check_golden({golden.PREFIX + name: text}))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("proof", "Boot", "'Boot' is not one of none, boot"),
        ("proof", "", "'' is not one of none, boot"),
        ("proofTimeout", "0", "'0' is not from 1s to 24h"),
        ("proofTimeout", "25h", "'25h' is not from 1s to 24h"),
        ("proofTimeout", "10", "'10' is not a duration such as 720h or 10m"),
        ("proofExpect", "", "a regular expression has 1 to 256 characters"),
        ("proofExpect", "a" * 257, "a regular expression has 1 to 256 characters"),
        ("proofExpect", "(", "'(' is not a regular expression: missing ), unterminated subpattern at position 0"),
        ("proofExpect", "x{99999999999}", "'x{99999999999}' is not a regular expression"),
        ("proofMemory", "1Mi", "'1Mi' is not from 64Mi to 64Gi"),
        ("proofMemory", "much", "'much' is not a quantity"),
        ("proofMemory", "1e64", "'1e64' is not from 64Mi to 64Gi"),
        ("proofFirmware", "efi", "'efi' is not one of auto, bios, uefi"),
        ("keepFor", "1000000h", "'1000000h' is not from 0s to 87600h"),
        ("keepFor", "-1h", "'-1h' is not a duration such as 720h or 10m"),
        ("architectures", "", "'' is not an architecture"),
        ("architectures", "amd64,amd64", "it names an architecture twice"),
        ("architectures", "x86_64", "'x86_64' is not an architecture: 386, amd64, arm, arm64"),
        ("recordKey", "a/b", "'a/b' is not the name of a Secret"),
        ("pin", "", "'' is not the name or digest of a version"),
        ("pin", "a b", "'a b' is not the name or digest of a version"),
        ("hold", "yes", "'yes' is not one of true, false"),
        ("channels", "[]", "it: must be an object"),
        ("channels", "x", "not JSON"),
        ("channels", '{"a":{},"a":{}}', "not JSON"),
        ("channels", '{"a":{"later":1}}', "a.later: is not known"),
        ("channels", '{"a":{"after":"1"}}', "'1' is not a duration such as 720h or 10m"),
        ("channels", '{"a":{"behind":-1}}', "a.behind: must be at least 0"),
        ("channels", '{"a":{"behind":100}}', "a.behind: must be at most 99"),
        ("channels", '{"a":{"manual":true,"after":"1h"}}', "channel 'a' is manual and has another rule as well"),
        ("channels", '{"A":{}}', "'A' is not the name of a DataSource of at most 63 characters"),
        ("channels", f'{{"{"a" * 64}":{{}}}}', "is not the name of a DataSource of at most 63 characters"),
        ("channels", " " * 20_000 + "x" * 20_000, "it is longer than 16384 characters"),
        ("channels", "[" * 10_000, "not JSON"),
        ("rollback", "", "'' is not the name or digest of a version"),
        ("promote", "stable", "'stable' is not CHANNEL=VERSION"),
        ("promote", "Stable=v", "'Stable' is not the name of a DataSource"),
        ("promote", "stable=", "'' is not the name or digest of a version"),
        ("revoke", "v: " + "x" * 1025, "the reason is longer than 1024 characters"),
        ("revoke", "v: a\x1b[2J", "is empty or holds control characters"),
        ("deprecate", "v", "'v' is not VERSION from=RFC3339"),
        ("deprecate", "", "'' is not VERSION from=RFC3339"),
        ("deprecate", "v endOfLife=2027-01-01T00:00:00Z", "is not VERSION from=RFC3339"),
        ("deprecate", "v from=tomorrow", "from 'tomorrow' is not a time such as 2027-01-31T00:00:00Z"),
        ("deprecate", "v from=2027-02-30T00:00:00Z", "from '2027-02-30T00:00:00Z' is not a time"),
        ("deprecate", "v from=never endOfLife=2027-01-01T00:00:00Z", "never deprecated has no end of life"),
        ("deprecate", "v from=2027-01-02T00:00:00Z endOfLife=2027-01-01T00:00:00Z", "endOfLife is before from"),
        ("deprecate", "v from=2027-01-02T00:00:00Z from=never", "is not VERSION from=RFC3339"),
        ("retry", "a\n", None),
        ("release", "*", "'*' is not the name or digest of a version"),
    ],
)
def test_invalid_values_are_refused_with_their_cause(name: str, text: str, message: str | None) -> None:
    problems = list(check_golden({golden.PREFIX + name: text}))
    if message is None:  # surrounding white space is ignored
        assert not problems
        return
    (problem,) = problems
    assert problem.field == f"metadata.annotations[cdi.kubevirt.io/golden.{name}]"
    assert problem.message.startswith("Invalid value: ")
    assert message in problem.message
    assert len(problem.message) < 500


def test_seventeen_channels_are_too_many() -> None:
    text = "{" + ",".join(f'"c{number}":{{}}' for number in range(17)) + "}"
    with pytest.raises(InvalidManifest, match="it has 17 channels, at most 16 are allowed"):
        setting("channels", text)


@pytest.mark.parametrize(
    "expression",
    ["(a+)+", "(a|b)*", "((a?))+", "(a?){20}", "(?:a*)*", "(?P<x>a{2,3})+?", "(a+)++", "(?x)(a+) +", "(?ix: (a+) +)"],
)
def test_expressions_that_can_take_exponential_time_are_refused(expression: str) -> None:
    with pytest.raises(InvalidManifest, match="may take exponential time"):
        setting("proofExpect", expression)


@pytest.mark.parametrize(
    "expression", ["(abc)+", "(a+)?", "(a|b)", "a+?b*+", "[(+)|]+", r"\(a+\)+", "(?:ab){3}", "a{,2}", "a{b}", "x{,}"]
)
def test_harmless_expressions_are_accepted(expression: str) -> None:
    assert setting("proofExpect", expression).proof_expect == expression


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InvalidManifest) as refused:
        setting("proofs", "boot")
    assert 'Unsupported value: "proofs": supported values: "architectures", "channels"' in refused.value.what


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(InvalidManifest) as refused:
        parse_golden_settings({golden.PROOF: "x", golden.HOLD: "y"})
    assert golden.PROOF in refused.value.what
    assert golden.HOLD in refused.value.what
    assert refused.value.where == "metadata.annotations"


def test_an_invalid_command_does_not_affect_settings() -> None:
    assert parse_golden_settings({golden.PROMOTE: "x", golden.HOLD: "true"}) == GoldenSettings(hold=True)


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        (golden.ROLLBACK, "previous", Rollback(version="previous")),
        (golden.ROLLBACK, "sha256:abc", Rollback(version="sha256:abc")),
        (golden.PROMOTE, "stable=fedora-abc", Promote(channel="stable", version="fedora-abc")),
        (golden.PROMOTE, "n-1 = sha256:abc", Promote(channel="n-1", version="sha256:abc")),
        (golden.REVOKE, "sha256:abc", Revoke(version="sha256:abc")),
        (golden.REVOKE, "v: CVE-1: exploited", Revoke(version="v", reason="CVE-1: exploited")),
        (golden.REVOKE, "v: ", None),
        (golden.DEPRECATE, "v from=2027-01-01T01:00:00+01:00", Deprecate(version="v", since=JANUARY)),
        (
            golden.DEPRECATE,
            "v from=2027-01-01T00:00:00Z endOfLife=2027-01-02T00:00:00Z",
            Deprecate(version="v", since=JANUARY, end_of_life=JANUARY + dt.timedelta(days=1)),
        ),
        (golden.DEPRECATE, "v from=never", Deprecate(version="v")),
        (golden.RETRY, "v", Retry(version="v")),
        (golden.RELEASE, "all", Release(version="all")),
    ],
)
def test_commands_are_parsed(name: str, text: str, command: Command | None) -> None:
    commands = parse_commands({name: text})
    if command is None:  # the value ends with the colon, since its white space is removed
        assert [problem.field for problem in commands.problems] == [name]
    else:
        assert commands.valid == ((name, command),)
        assert commands.problems == ()


def test_commands_keep_their_order_and_invalid_ones_are_reported() -> None:
    commands = parse_commands({golden.RELEASE: "all", golden.PROMOTE: "?", golden.ROLLBACK: "v", golden.PROOF: "x"})
    assert [name for name, _ in commands.valid] == [golden.ROLLBACK, golden.RELEASE]
    assert [problem.field for problem in commands.problems] == [golden.PROMOTE]


@pytest.mark.parametrize("annotations", [None, {}])
def test_without_annotations_there_are_no_commands(annotations: dict[str, str] | None) -> None:
    assert parse_commands(annotations) == golden.Commands()


def test_only_changed_annotations_are_checked_on_an_update() -> None:
    before = {golden.PROMOTE: "?", golden.ROLLBACK: "v"}
    assert not list(check_golden_change(before, {golden.PROMOTE: "?"}))
    (problem,) = check_golden_change(before, {golden.PROMOTE: "?", golden.ROLLBACK: "?"})
    assert golden.ROLLBACK in problem.field


def test_an_origin_survives_its_json() -> None:
    origin = Origin(namespace="images", cron="fedora", version="fedora-0123456789ab", digest="sha256:01")
    assert Origin.from_json(origin.to_json()) == origin


@pytest.mark.parametrize("text", ["", "{}", "null", '{"namespace":"a","cron":"b","version":"c","digest":1}'])
def test_an_invalid_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Origin.from_json(text)


@given(
    st.dictionaries(
        st.sampled_from(
            [*golden.COMMANDS, golden.CHANNELS, golden.PROOF_EXPECT, golden.PIN, golden.KEEP_FOR, golden.PROOF_MEMORY]
        ),
        st.text(alphabet=st.characters(codec="utf-8"), max_size=300)
        | st.from_regex(r"[a-z]+=[a-z0-9:-]+ from=[0-9TZ:-]*", fullmatch=True)
        | st.text("ab(|)*+?{}[]^\\1,:x", max_size=30),
    )
)
def test_any_text_is_either_parsed_or_refused(annotations: dict[str, Any]) -> None:
    names = {problem.field for problem in parse_commands(annotations).problems}
    checked = list(check_golden(annotations))
    assert all(f"metadata.annotations[{name}]" in {problem.field for problem in checked} for name in names)
    try:
        expression = parse_golden_settings(annotations).proof_expect
    except InvalidManifest:
        assert checked
    else:
        re.compile(expression or "")
