"""History of a golden image: what is recorded, and which version is offered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.dataimportcron import DataImportCron, GoldenVersion, ProofStatus
from cdi.api.golden import MAX_VERSIONS, GoldenSettings
from cdi.reconcile.dataimportcron.versions import BAD, History, VersionNotFound, is_offerable

NOW = 1_800_000_000.0
PLAIN = GoldenSettings()


def digest(number: int) -> str:
    return f"sha256:{number:02x}{'0' * 61}a"


def name(number: int) -> str:
    return f"fedora-{number:02x}0000000000"


def imported(*numbers: int) -> History:
    """Return a history in which these versions were imported and offered in this order."""
    history = History(data_source="fedora")
    for step, number in enumerate(numbers):
        now = NOW + 100 * step
        history = history.found(digest(number), now).succeeded(name(number), now + 10, proof=False)
        history = history.offering(name(number), now + 20)
    return history


def states(history: History) -> dict[str, str]:
    return {version.name: version.state for version in history.versions}


def offered(history: History, settings: GoldenSettings = PLAIN, current: str | None = None) -> str | None:
    version = history.offered(settings, current).version
    return version.name if version is not None else None


def cron(**status) -> DataImportCron:
    return DataImportCron.model_validate(
        {
            "metadata": {"name": "fedora-cron", "namespace": "images"},
            "spec": {"template": {"spec": {}}, "schedule": "", "managedDataSource": "fedora"},
            "status": status,
        }
    )


def test_a_new_digest_becomes_the_newest_version_and_is_offered_once_imported():
    history = imported(1).found(digest(2), NOW, source="docker://r/f@" + digest(2))
    assert states(history) == {name(2): "Importing", name(1): "Available"}
    assert offered(history) == name(1)
    assert offered(history.succeeded(name(2), NOW, proof=False)) == name(2)


def test_a_version_that_must_boot_is_offered_only_after_its_proof():
    history = imported(1).found(digest(2), NOW).succeeded(name(2), NOW, proof=True)
    assert states(history)[name(2)] == "Proving"
    assert offered(history) == name(1)
    booted = history.proven(name(2), ProofStatus(booted=True))
    assert offered(booted) == name(2)
    failed = history.unproven(name(2), ProofStatus(booted=False), "BootFailed", "no login prompt")
    assert (offered(failed), failed.may_import(digest(2))) == (name(1), False)


def test_a_failed_version_is_not_imported_again_when_its_digest_comes_back():
    history = imported(1).found(digest(2), NOW).failed(name(2), "ChecksumMismatch", "wrong digest")
    flipped = history.found(digest(1), NOW).found(digest(2), NOW)
    assert states(flipped) == {name(2): "Failed", name(1): "Available"}
    assert not flipped.may_import(digest(2))
    assert offered(flipped) == name(1)
    assert flipped.retried(name(2)).may_import(digest(2))


def test_a_digest_that_comes_back_reuses_its_version():
    history = imported(1, 2).found(digest(1), NOW + 900)
    assert [version.name for version in history.versions] == [name(1), name(2)]
    assert states(history) == {name(1): "Available", name(2): "Available"}
    assert offered(history) == name(1)


def test_a_digest_that_comes_back_after_its_volume_was_removed_is_imported_again():
    history = imported(1, 2).removed(name(1), "Outdated", "3 newer versions", NOW)
    assert states(history)[name(1)] == "Removed"
    again = history.found(digest(1), NOW + 5)
    assert states(again)[name(1)] == "Importing"
    assert again.get(name(1)).removed is None
    assert offered(again) == name(2)


def test_finding_the_newest_digest_again_changes_nothing():
    history = imported(1, 2)
    assert history.found(digest(2), NOW + 5000) == history


def test_a_rollback_survives_polls_of_the_same_digest_and_ends_with_a_newer_one():
    history = imported(1, 2).rolled_back(name(1))
    for poll in range(3):
        history = history.found(digest(2), NOW + 1000 * poll)
        assert offered(history) == name(1)
    assert offered(history.release(name(2))) == name(2)
    newer = history.found(digest(3), NOW).succeeded(name(3), NOW, proof=False)
    assert offered(newer) == name(3)
    assert newer.get(name(2)).withheld


def test_a_rollback_withholds_a_newer_version_that_is_still_being_imported():
    history = imported(1).found(digest(2), NOW).rolled_back(name(1)).succeeded(name(2), NOW, proof=False)
    assert offered(history) == name(1)


def test_rolling_back_to_a_withheld_version_offers_it_again():
    history = imported(1, 2, 3).rolled_back(name(1)).rolled_back(name(2))
    assert offered(history) == name(2)
    assert history.get(name(3)).withheld


def test_the_previous_version_is_the_newest_that_can_be_offered_and_is_older():
    history = imported(1, 2, 3, 4).revoke(name(3), "bad")
    assert history.previous(history.get(name(4))).name == name(2)
    with pytest.raises(VersionNotFound, match="no previous version"):
        history.previous(history.get(name(1)))


def test_a_revoked_version_is_neither_offered_nor_imported_again_even_after_its_volume_is_gone():
    history = imported(1, 2).revoke(name(2), "backdoor").removed(name(2), "Outdated", "", NOW)
    again = history.found(digest(1), NOW).found(digest(2), NOW)
    assert states(again)[name(2)] == "Revoked"
    assert (offered(again), again.may_import(digest(2))) == (name(1), False)


def test_a_version_revoked_during_its_import_stays_revoked_when_the_import_ends():
    history = imported(1).found(digest(2), NOW).revoke(name(2), "backdoor")
    ended = (
        history.succeeded(name(2), NOW, proof=False).failed(name(2), "X", "x").proven(name(2), ProofStatus(booted=True))
    )
    assert states(ended)[name(2)] == "Revoked"


def test_a_pinned_version_is_offered_although_newer_ones_are_available():
    assert offered(imported(1, 2, 3), GoldenSettings(pin=digest(1)[:12])) == name(1)
    assert offered(imported(1, 2, 3).rolled_back(name(1)), GoldenSettings(pin=name(2))) == name(2)


@pytest.mark.parametrize(
    ("pin", "text"),
    [
        (name(1), "it is Removed"),
        (digest(9), "there is no version"),
        ("fed", "too short"),
        ("fedora", "names 3 versions"),
    ],
)
def test_an_unavailable_pin_keeps_what_is_offered_and_says_why(pin, text):
    history = imported(1, 2, 3).removed(name(1), "Outdated", "", NOW)
    offer = history.offered(GoldenSettings(pin=pin), current=name(2))
    assert offer.version.name == name(2)
    assert text in offer.problem
    assert name(2) in offer.problem


def test_hold_keeps_what_is_offered_unless_it_is_revoked_or_rolled_back_from():
    held = GoldenSettings(hold=True)
    history = imported(1, 2, 3)
    assert offered(history, held, current=name(2)) == name(2)
    assert offered(history.revoke(name(2), "bad"), held, current=name(2)) == name(3)
    assert offered(history.rolled_back(name(1)), held, current=name(3)) == name(1)


def test_hold_keeps_the_version_offered_last_if_the_data_source_was_deleted():
    history = imported(1, 2, 3).rolled_back(name(2)).offering(name(2), NOW + 250)
    history = history.release(name(3))
    assert offered(history, GoldenSettings(hold=True)) == name(2)


def test_two_changes_within_one_second_keep_their_order():
    history = imported(1, 2).offering(name(1), NOW + 120)
    assert history.last_offered().name == name(1)


def test_nothing_is_offered_if_every_version_is_bad_and_the_reason_is_given():
    offer = imported(1).revoke(name(1), "backdoor").offered(PLAIN, name(1))
    assert offer.version is None
    assert "backdoor" in offer.problem
    withheld = imported(1, 2).rolled_back(name(1)).revoke(name(1), "bad too").offered(PLAIN)
    assert withheld.version is None
    assert "withheld" in withheld.problem


def test_the_history_of_another_controller_is_adopted():
    status = {
        "currentImports": [{"DataVolumeName": name(1), "Digest": digest(1)}],
        "lastImportedPVC": {"namespace": "images", "name": name(1)},
        "lastImportTimestamp": "2026-01-01T00:00:00Z",
    }
    history = History.of(cron(**status))
    assert offered(history) == name(1)
    assert states(History.of(cron(currentImports=status["currentImports"]))) == {name(1): "Importing"}
    older = history.adopted([name(2), "fedora-fd83ea4c-7ef", "other"], NOW)
    assert [(one.name, one.digest) for one in older.versions[1:]] == [
        (name(2), "sha256:020000000000"),
        ("fedora-fd83ea4c-7ef", "uid:fd83ea4c-7ef"),
    ]
    assert older.found(digest(2), NOW).get(digest(2)).name == name(2)


def test_a_digest_whose_name_is_taken_by_another_digest_gets_a_name_of_its_own():
    other = digest(1)[:-1] + "b"
    history = imported(1).found(other, NOW)
    assert len({version.name for version in history.versions}) == 2
    assert history.get(other).name == "fedora-" + other.removeprefix("sha256:")


def test_volumes_deleted_by_others_leave_a_record():
    history = imported(1, 2).found(digest(3), NOW).without_volumes({name(2)}, NOW)
    assert states(history) == {name(3): "Importing", name(2): "Available", name(1): "Removed"}


def test_a_version_can_be_named_by_digest_prefix_and_name_prefix():
    history = imported(0x1A, 0x1B)
    assert history.find("1a00").name == name(0x1A)
    assert history.find("sha256:1b00").name == name(0x1B)
    assert history.find("fedora-1b").name == name(0x1B)


def test_the_history_is_bounded_and_never_loses_a_version_that_has_a_volume():
    history = imported(1)
    history = history.found(digest(2), NOW).failed(name(2), "X", "x").removed(name(2), "Failed", "", NOW)
    history = history.found(digest(3), NOW).revoke(name(3), "bad").removed(name(3), "Outdated", "", NOW)
    for number in range(4, 4 + MAX_VERSIONS + 20):
        history = history.found(digest(number), NOW).succeeded(name(number), NOW, proof=False)
        history = history.removed(name(number), "Outdated", "", NOW)
    assert len(history.versions) == MAX_VERSIONS
    assert states(history)[name(1)] == "Available"
    assert states(history)[name(3)] == "Revoked"


def test_the_status_round_trips():
    history = imported(1, 2).rolled_back(name(1)).found(digest(3), NOW).failed(name(3), "X", "x" * 5000)
    stored = history.to_status()
    assert History.of(cron(versions=stored)).to_status() == stored
    assert None not in stored[0].values()
    assert len(stored[0]["message"]) == 1024


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "found",
                "succeeded",
                "proving",
                "failed",
                "proven",
                "unproven",
                "back",
                "release",
                "revoke",
                "removed",
                "retry",
            ]
        ),
        st.integers(min_value=1, max_value=6),
    ),
    max_size=40,
)


def apply(history: History, operation: str, number: int, now: float) -> History:
    target = name(number)
    match operation:
        case "found":
            return history.found(digest(number), now)
        case "succeeded" | "proving":
            return history.succeeded(target, now, proof=operation == "proving")
        case "failed":
            return history.failed(target, "X", "x")
        case "proven":
            return history.proven(target, ProofStatus(booted=True))
        case "unproven":
            return history.unproven(target, ProofStatus(booted=False), "X", "x")
        case "back":
            return history.rolled_back(target)
        case "release":
            return history.release(target)
        case "revoke":
            return history.revoke(target, "bad")
        case "removed":
            return history.removed(target, "Outdated", "", now)
        case _:
            return history.retried(target)


def check(history: History, settings: GoldenSettings, current: str | None) -> str | None:
    version = history.offered(settings, current).version
    if version is not None:
        assert version.state == "Available"
        assert version.removed is None
        assert not version.withheld or settings.pin is not None
        if settings == PLAIN:
            assert version == next(one for one in history.versions if is_offerable(one))
    elif settings.pin is None:
        assert not any(is_offerable(one) for one in history.versions)
    return version.name if version is not None else None


@given(
    OPERATIONS,
    st.sampled_from(
        [PLAIN, GoldenSettings(hold=True), GoldenSettings(pin=name(2)), GoldenSettings(pin=digest(3)[:14])]
    ),
)
def test_nothing_bad_removed_revoked_or_withheld_is_ever_offered(operations, settings):
    history = History(data_source="fedora")
    current: str | None = None
    revoked: set[str] = set()
    for step, (operation, number) in enumerate(operations):
        history = apply(history, operation, number, NOW + step)
        assert len({one.name for one in history.versions}) == len(history.versions)
        revoked |= {one.name for one in history.versions if one.state == "Revoked"}
        assert revoked <= {one.name for one in history.versions if one.state == "Revoked"}
        current = check(history, settings, current)
        if current is not None:
            history = history.offering(current, NOW + step)
    for version in history.versions:
        assert version.state not in BAD or not history.may_import(version.digest)
    stored = History.of(cron(versions=history.to_status()))
    assert [GoldenVersion.model_validate(one) for one in stored.to_status()] == list(stored.versions)
    assert offered(stored, settings, current) == offered(history, settings, current)
