"""Tests of the tally: skipped tests are counted by reason, and tests that passed only on a rerun are named."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tally import ALLOWED, Tally, summary

ROOT = Path(__file__).parents[2]

TESTS = """
import os
import pytest

@pytest.mark.skip(reason="there is no moon")
def test_marked(): pass

def test_called(): pytest.skip("there is no moon")

@pytest.mark.xfail(reason="known")
def test_expected(): assert False

def test_good(): pass

def test_flaky():
    if not os.path.exists("ran"):
        open("ran", "w").close()
        assert False
"""


@pytest.fixture
def runs(tmp_path):
    """Return a function that runs pytest over the tests above and returns the tally so far."""
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.skip('a whole module', allow_module_level=True)\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    file = tmp_path / "tally"

    def run(*arguments):
        environment = {**os.environ, "CDI_TEST_TALLY": str(file), "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
        environment = {name: value for name, value in environment.items() if "XDIST" not in name}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.tally", "-p", "no:cacheprovider", *arguments]
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        return Tally.read(file.read_text().splitlines())

    return run


@pytest.mark.parametrize("workers", ["0", "2"])
def test_runs_are_added_up(runs, workers):
    first = runs("-n", workers)
    assert {reason: len(tests) for reason, tests in first.skipped.items()} == {
        "there is no moon": 2,
        "a whole module": 1,
    }
    assert first.failed == {"test_it.py::test_flaky"}
    assert first.passed == set()
    both = runs("-n", workers)
    assert both.skipped == first.skipped
    assert both.passed == {"test_it.py::test_flaky"}


def test_a_test_that_fails_again_has_not_passed(runs, tmp_path):
    runs()
    runs()
    (tmp_path / "ran").unlink()
    assert runs().passed == set()


def test_the_last_line_names_what_was_run_again():
    tally = Tally(runs=1)
    tally.skipped["there is no moon"] |= {"a::b", "a::c"}
    tally.skipped["no sun"] |= {"a::d"}
    tally.passed |= {"x::z", "x::y"}
    assert summary(tally, ["there is no moon", "no sun"], "done after 3 s") == [
        "skipped: 3 (2 because there is no moon; 1 because no sun)",
        "done after 3 s; passed only when run again: x::y, x::z",
    ]
    assert summary(Tally(), [], "done after 1 s") == ["done after 1 s"]


def test_a_reason_that_is_not_allowed_is_named_and_fails(tmp_path):
    file = tmp_path / "tally"
    file.write_text('{"skipped": {"the moon is full": ["a::b"]}, "failed": [], "passed": []}\n')
    command = [sys.executable, "-m", "tests.tally", "--strict", str(file), "done after 1 s"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not among the reasons in tests/skips.toml: the moon is full (a::b)" in done.stdout
    assert done.stdout.splitlines()[-1] == "== done after 1 s; passed only when run again: none"
    command.remove("--strict")
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def test_every_allowed_reason_has_its_explanation():
    for reason, why in tomllib.loads(ALLOWED.read_text()).items():
        assert isinstance(why, str) and len(why) > len(reason) / 2
