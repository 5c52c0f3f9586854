#!/usr/bin/env python3
"""Reject words for which this field has a plainer or more precise term.

    scripts/check_terms.py [PATH ...]     default: every Python and Markdown file that git tracks

scripts/terms.txt lists the words and what to write instead. Docstrings, comments, messages (string literals of more
than one word) and documentation are searched; identifiers, text in backquotes and fenced blocks are not. Each hit is
one line: `FILE:LINE: "WORD": write ADVICE`. The exit status is 1 if there is a hit.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TERMS = Path(__file__).with_name("terms.txt")
# The history is not rewritten. The other file tests this check.
EXEMPT = ("CHANGELOG.md", "tests/unit/test_check_terms.py")
_CODE = re.compile(r"``[^`]+``|`[^`\n]+`")
# What may separate two words: a line break in a docstring, a comment or a literal in several parts.
_SPACE = r"""(?:[\s#"']|f")+"""
_FENCE = re.compile(r"\s*(```|~~~)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The rejected words, each a named group of one expression, and what to write instead."""

    pattern: re.Pattern[str]
    advice: dict[str, str]
    allowed: tuple[str, ...]
    """Phrases that have to stay as they are."""

    @classmethod
    def parse(cls, text: str) -> Terms:
        """Read the list.

        Raises:
            ValueError: a line is not "EXPRESSION<tab>ADVICE" or "allow<tab>PHRASE".
        """
        advice: dict[str, str] = {}
        patterns, allowed = [], []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            words, _, rest = line.partition("\t")
            if not rest.strip():
                raise ValueError(f"line {number}: a tab and what to write instead are missing")
            if words == "allow":
                allowed.append(rest.strip())
                continue
            try:
                re.compile(words)
            except re.error as error:
                raise ValueError(f"line {number}: {words!r} is not a regular expression: {error}") from error
            name = f"line{number}"
            patterns.append(f"(?P<{name}>{words.replace(' ', _SPACE)})")
            advice[name] = rest.strip()
        pattern = re.compile(rf"\b(?:{'|'.join(patterns)})\b", re.IGNORECASE)
        return cls(pattern=pattern, advice=advice, allowed=tuple(allowed))

    def hits(self, text: str) -> Iterator[tuple[int, str, str]]:
        """Yield the number of line breaks before each rejected word, the word, and what to write instead."""
        for phrase in self.allowed:
            text = text.replace(phrase, "")
        text = _CODE.sub(lambda code: "``" + "\n" * code[0].count("\n"), text)
        for match in self.pattern.finditer(text):
            yield text.count("\n", 0, match.start()), " ".join(match[0].split()), self.advice[match.lastgroup or ""]


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each comment and each string literal of more than one word."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    first, text = 0, ""
    for comment in comments:
        line = comment.start[0]
        if text and line == first + text.count("\n") + 1:
            text += f"\n{comment.string}"
            continue
        if text:
            yield first, text
        first, text = line, comment.string
    if text:
        yield first, text


def markdown_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each paragraph; fenced blocks are left out."""
    fence = ""
    first, paragraph = 0, list[str]()
    for number, line in enumerate([*source.splitlines(), ""], 1):
        opening = _FENCE.match(line)
        if opening and (not fence or opening[1] == fence):
            fence = "" if fence else opening[1]
        elif not fence and line.strip() and not opening:
            first = number if not paragraph else first
            paragraph.append(line)
            continue
        if paragraph:
            yield first, "\n".join(paragraph)
            paragraph = []


def findings(path: Path, terms: Terms) -> list[tuple[int, str, str]]:
    """Return the line number, the rejected word and the advice of each hit in a file."""
    source = path.read_text(encoding="utf-8")
    if not terms.pattern.search(source):
        return []  # parsing takes most of the time, and most files have no such word anywhere
    texts = python_texts(source) if path.suffix == ".py" else markdown_texts(source)
    # An f-string's parts may have the position of the whole: two equal hits on one line are one.
    return sorted({(first + line, word, advice) for first, text in texts for line, word, advice in terms.hits(text)})


def tracked(root: Path, paths: list[str]) -> list[Path]:
    """Return the Python and Markdown files that git tracks at or below the paths."""
    command = ["git", "ls-files", "-z", "--", *paths]
    names = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True, text=True).stdout.split("\0")
    files = [root / name for name in names if name.endswith((".py", ".md")) and name not in EXEMPT]
    return [file for file in files if file.is_file()]


def check(root: Path, paths: list[str], terms: Terms) -> int:
    """Print every hit and return the exit status."""
    status = 0
    for path in tracked(root, paths):
        for line, word, advice in findings(path, terms):
            print(f'{path.relative_to(root)}:{line}: "{word}": write {advice}')
            status = 1
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="PATH")
    return check(ROOT, parser.parse_args().paths, Terms.parse(TERMS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
