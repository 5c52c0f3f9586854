"""Shell blocks of the documentation, and the runner that executes them.

A comment directly above a fenced shell block says how it is tested:

    <!-- executed by tests/integration/docs/test_how_to.py::test_import_from_http -->
    <!-- not executed: needs an account at a cloud provider -->

A test executes the blocks that name it, in order, in one shell: `DocShell.run`. In a ``console`` block each line that
begins with ``$ `` is a command, which must succeed; a backslash or a here-document continues it. Other lines are its
output: each must appear, in this order, where ``…`` stands for any text. A ``sh`` block is a script without output. A
block of another language that names a test and begins with ``# NAME`` is written to the file NAME before the first
command.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHELL = {"console", "shell-session", "sh", "bash", "shell"}
README = {
    # The README has no comments, so its blocks' tests are listed here.
    "console": "tests/integration/test_scripts_readme.py::test_the_examples_work",
    "yaml": "tests/integration/test_scripts_readme.py::test_the_examples_work",
    "shell-session": "tests/cluster/test_readme.py::test_the_readmes_commands_work_as_they_are_written",
}
EXECUTED = re.compile(r"<!-- executed by (\S+\.py::\w+) -->")
NOT_EXECUTED = re.compile(r"<!-- not executed:(.*)-->")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)$")
_FILE = re.compile(r"# (\S+\.\w+)\n")
_HERE = re.compile(r"<<-?\s*'?(\w+)'?")
_SEPARATOR = "\x1e"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    page: str
    """Path in the repository."""
    line: int
    language: str
    text: str
    executed_by: str | None
    """The node id of the test that executes it, if any."""
    reason: str | None
    """The reason why no test executes it, if there is none."""

    @property
    def file(self) -> str | None:
        """The name of the file to write the block to, if it is one."""
        name = None if self.language in SHELL else _FILE.match(self.text)
        return name[1] if name else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command and the output that it must print."""

    where: str
    command: str
    output: tuple[str, ...] = ()


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return every fenced block of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    name = str(page.relative_to(ROOT))
    found = []
    position = 0
    while position < len(lines):
        opening = _FENCE.match(lines[position])
        if opening is None:
            position += 1
            continue
        indent = opening["indent"]
        end = lines.index(f"{indent}```", position + 1)
        above = lines[position - 1].strip() if position else ""
        executed, reason = EXECUTED.fullmatch(above), NOT_EXECUTED.fullmatch(above)
        language = opening["language"]
        found.append(
            Block(
                page=name,
                line=position + 1,
                language=language,
                text="".join(f"{line.removeprefix(indent)}\n" for line in lines[position + 1 : end]),
                executed_by=executed[1] if executed else README.get(language) if name == "README.md" else None,
                reason=reason[1].strip() if reason else None,
            )
        )
        position = end + 1
    return found


def blocks_of(test: str) -> list[Block]:
    """Return the blocks that a test executes, in order.

    Args:
        test: its node id, such as ``tests/integration/docs/test_how_to.py::test_upload``.
    """
    return [block for page in pages() for block in blocks(page) if block.executed_by == test]


def steps(block: Block) -> Iterator[Step]:
    """Yield the commands of a shell block."""
    if block.language not in ("console", "shell-session"):
        yield Step(where=str(block), command=block.text)
        return
    lines = block.text.splitlines()
    position = 0
    while position < len(lines):
        number = block.line + 1 + position
        first = lines[position]
        assert first.startswith("$ "), f"{block.page}:{number}: output without a command"
        command = [first.removeprefix("$ ")]
        position += 1
        here = _HERE.search(first)
        while position < len(lines) and (here or command[-1].endswith("\\")):
            command.append(lines[position])
            position += 1
            if here and command[-1] == here[1]:
                break
        output = []
        while position < len(lines) and not lines[position].startswith("$ "):
            output.append(lines[position])
            position += 1
        yield Step(where=f"{block.page}:{number}", command="\n".join(command), output=tuple(output))


def unmatched(expected: tuple[str, ...], printed: str) -> str | None:
    """Return the first expected line that was not printed, or None."""
    lines = iter(printed.splitlines())
    for line in expected:
        if line.strip() in ("", "…"):
            continue
        pattern = ".*".join(re.escape(part) for part in " ".join(line.split()).split("…"))
        if not any(re.fullmatch(pattern, " ".join(each.split())) for each in lines):
            return line
    return None


@dataclass(slots=True, kw_only=True)
class DocShell:
    """One bash process in which a test's blocks run, from an empty home directory."""

    test: str
    directory: Path
    environment: dict[str, str]
    replacements: dict[str, str] = field(default_factory=dict)
    """Replacements for texts of the page, mostly addresses of servers."""
    skipped: tuple[str, ...] = ()
    """Prefixes of commands that are not run, because another stage of scripts/test runs them."""

    def run(self, timeout: float = 300.0) -> str:
        """Run every block that names the test and return the output."""
        found = blocks_of(self.test)
        assert found, f"no block names {self.test}"
        commands = []
        for block in found:
            if block.file is not None:
                (self.directory / block.file).write_text(self._replaced(block.text))
            elif block.language in SHELL:
                commands += [step for step in steps(block) if not step.command.startswith(self.skipped or ("\0",))]
        return self._execute(commands, timeout)

    def _execute(self, commands: list[Step], timeout: float) -> str:
        script = ["exec 2>&1", "set -eo pipefail"]
        for number, step in enumerate(commands):
            script += [f"printf '\\n\\036%s\\n' {number}", self._replaced(step.command)]
        log = self.directory.parent / f"{self.directory.name}.log"
        with log.open("wb") as printed:
            process = subprocess.Popen(
                ["bash", "-c", "\n".join(script)],
                cwd=self.directory, env=self.environment, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed,
                start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                status = -1
            finally:
                # Processes that the page starts in the background end with the shell.
                try:
                    os.killpg(process.pid, signal.SIGTERM)
                except ProcessLookupError:
                    pass
        text = log.read_text(errors="replace")
        parts = dict(_numbered(text))
        reached = max(parts, default=0)
        assert status == 0, f"{commands[reached].where}: status {status}\n{commands[reached].command}\n{text[-4000:]}"
        assert "Traceback" not in text, text[-4000:]
        for number, step in enumerate(commands):
            expected = tuple(self._replaced(line) for line in step.output)
            missing = unmatched(expected, parts.get(number, ""))
            assert missing is None, f"{step.where}: not printed: {missing!r}\nbut:\n{parts.get(number)}"
        return text

    def _replaced(self, text: str) -> str:
        for written, here in self.replacements.items():
            text = text.replace(written, here)
        return text


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    for part in text.split(_SEPARATOR)[1:]:
        number, _, printed = part.partition("\n")
        yield int(number), printed


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return a new user's environment: this environment's programs and an empty home directory."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        **more,
    }


def shell(test: str, directory: Path, *, replacements: Mapping[str, str] | None = None, **more: str) -> DocShell:
    """Return a shell in the new directory `directory`/work with the home directory `directory`/user."""
    work, user = directory / "work", directory / "user"
    work.mkdir()
    user.mkdir()
    return DocShell(
        test=test, directory=work, environment=environment(user, **more), replacements=dict(replacements or {})
    )
