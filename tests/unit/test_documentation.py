"""Tests of the documentation: each shell block is executed or says why not, and every page that is named exists."""

from __future__ import annotations

import ast
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.doc_blocks import (
    EXECUTED,
    NOT_EXECUTED,
    ROOT,
    SHELL,
    Block,
    DocShell,
    Step,
    blocks,
    environment,
    pages,
    steps,
    unmatched,
)

BLOCKS = [block for page in pages() for block in blocks(page)]
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
PAGES = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, FUNCTIONS)}


def node_ids(path: Path) -> set[str]:
    """Return the names by which pytest selects the classes and tests of a file."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, FUNCTIONS):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, FUNCTIONS)}
    return found


def test_there_are_blocks_that_are_executed():
    assert sum(block.executed_by is not None for block in BLOCKS) >= 20


@PAGES
def test_every_block_names_its_language(page):
    assert [str(block) for block in blocks(page) if not block.language] == []


@PAGES
def test_every_shell_block_is_executed_or_says_why_not(page):
    assert [
        str(block) for block in blocks(page) if block.language in SHELL and not (block.executed_by or block.reason)
    ] == []


@PAGES
def test_a_block_that_is_not_executed_has_a_reason(page):
    reasons = {str(block): block.reason for block in blocks(page) if block.reason is not None}
    assert {where: reason for where, reason in reasons.items() if len(reason.split()) < 3} == {}


@PAGES
def test_an_executed_block_is_a_shell_block_or_a_file(page):
    executed = [block for block in blocks(page) if block.executed_by and page.name != "README.md"]
    assert [str(block) for block in executed if block.language not in SHELL and block.file is None] == []


@PAGES
def test_a_reason_that_names_a_test_names_one_that_exists(page):
    named = [path for block in blocks(page) for path in re.findall(r"tests/[\w/]+(?:\.py)?", block.reason or "")]
    assert [path for path in named if not (ROOT / path).exists()] == []


@PAGES
def test_every_marker_stands_right_above_a_block(page):
    lines = page.read_text().splitlines()
    stray = [
        number
        for number, line in enumerate(lines, 1)
        if line.strip().startswith(("<!-- executed", "<!-- not executed"))
        and not (
            (EXECUTED.fullmatch(line.strip()) or NOT_EXECUTED.fullmatch(line.strip()))
            and number < len(lines)
            and lines[number].strip().startswith("```")
        )
    ]
    assert stray == []


@PAGES
def test_no_command_hides_in_an_indented_block(page):
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"\n\n(    (?:\$|cdi|kubectl|helm|curl|scripts/).*)", text) == []


@pytest.mark.parametrize("test", sorted({block.executed_by for block in BLOCKS if block.executed_by}))
def test_the_test_that_a_block_names_executes_it(test):
    path, _, name = test.partition("::")
    assert (ROOT / path).is_file()
    assert name in functions(ROOT / path)
    assert "tests.doc_blocks" in (ROOT / path).read_text()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in SHELL], ids=str)
def test_a_shell_block_parses(block):
    for step in steps(block):
        done = subprocess.run(["bash", "-n", "-c", step.command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{step.where}: {done.stderr}"


def test_every_test_on_the_page_of_defects_exists():
    page = (ROOT / "docs/reference/defects.md").read_text()
    reference = re.compile(r"(tests/[\w/]+\.py)(?:::([\w:]+))?(?:\[[^\]]*\])?")
    named = reference.findall(page)
    assert named
    unknown = [f"{path}::{test}" for path, test in named if test not in {"", *node_ids(ROOT / path)}]
    assert unknown == [], "pytest knows no tests of these names"
    assert re.findall(r"\S*\btest_\w+", reference.sub("", page)) == [], "each test is named with its path"


def test_every_page_that_a_file_names_exists():
    named = subprocess.run(
        ["git", "grep", "-hoE", r"(^|[^/[:alnum:]])docs/[a-z/-]+\.(md|svg)", "--", "cdi", "charts", "scripts", "tests",
         "examples", "crds", "Containerfile", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    paths = set(re.findall(r"docs/[a-z/-]+\.(?:md|svg)", named))
    assert len(paths) > 10
    assert sorted(path for path in paths if not (ROOT / path).is_file()) == []


def test_a_marker_without_a_reason_is_found():
    (block,) = (Block(page="p", line=1, language="sh", text="", executed_by=None, reason=match[1].strip())
                for match in [NOT_EXECUTED.fullmatch("<!-- not executed: -->")])  # fmt: skip
    assert block.reason == ""


def test_output_is_compared_line_by_line_in_order():
    assert unmatched(("golden  Succeeded  …", "…", "done"), "NAME\ngolden Succeeded 100.0%\nx\ndone\n") is None
    assert unmatched(("b", "a"), "a\nb\n") == "a"
    assert unmatched(("golden Failed",), "golden Succeeded\n") == "golden Failed"


def test_a_command_continues_over_backslashes_and_here_documents():
    text = "$ a \\\n  b\nout\n$ cat <<END\n$ x\nEND\n$ c\n"
    found = list(steps(Block(page="p", line=1, language="console", text=text, executed_by=None, reason=None)))
    assert [step.command for step in found] == ["a \\\n  b", "cat <<END\n$ x\nEND", "c"]
    assert [step.output for step in found] == [("out",), (), ()]


class TestTheShell:
    @pytest.fixture
    def shell(self, tmp_path):
        (tmp_path / "work").mkdir()
        return DocShell(
            test="none", directory=tmp_path / "work", environment=environment(tmp_path), replacements={"8089": "1234"}
        )

    def execute(self, shell, *commands):
        """Run commands, each with the output to expect if it is a pair."""
        parts = [each if isinstance(each, tuple) else (each, ()) for each in commands]
        found = [
            Step(where=f"page:{n}", command=command, output=tuple(told)) for n, (command, told) in enumerate(parts)
        ]
        return shell._execute(found, 60.0)

    def test_commands_share_one_shell(self, shell):
        self.execute(shell, "x=1", "mkdir d && cd d", ('echo "$x $(basename $PWD)"', ["1 d"]))

    def test_what_stands_on_the_page_is_replaced_in_commands_and_output(self, shell):
        self.execute(shell, ("echo port 8089", ["port 8089"]), ("test 8089 = 1234", []))

    def test_a_command_that_fails_is_named(self, shell):
        with pytest.raises(AssertionError, match="page:1: status 3"):
            self.execute(shell, "true", "exit 3", "true")

    def test_output_that_is_not_printed_is_named(self, shell):
        with pytest.raises(AssertionError, match="page:1: not printed: 'two'"):
            self.execute(shell, ("echo two", ["two"]), ("echo one", ["one", "two"]))

    def test_a_traceback_fails(self, shell):
        with pytest.raises(AssertionError, match="Traceback"):
            self.execute(shell, "echo 'Traceback (most recent call last)'")

    def test_what_runs_in_the_background_ends_with_the_page(self, shell):
        self.execute(shell, "(trap 'touch ended; exit' TERM; touch begun; while :; do sleep 0.1; done) &",
                     "until [ -e begun ]; do sleep 0.1; done")  # fmt: skip
        deadline = time.monotonic() + 60
        while not (shell.directory / "ended").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
