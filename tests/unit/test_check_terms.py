"""Tests of scripts/check_terms.py: which texts it searches, and what it prints about them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.doc_blocks import ROOT


@pytest.fixture(scope="module")
def check_terms():
    sys.path.insert(0, str(ROOT / "scripts"))
    import check_terms

    yield check_terms
    sys.path.remove(str(ROOT / "scripts"))
    del sys.modules["check_terms"]


@pytest.fixture
def run(check_terms, tmp_path, capsys):
    """Return a function that checks a tree with one file and returns the status and the printed lines."""
    terms = check_terms.Terms.parse(check_terms.TERMS.read_text())

    def run(text, name="module.py", terms=terms):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
        subprocess.run(["git", "-C", tmp_path, "add", "-A"], check=True)
        return check_terms.check(tmp_path, [], terms), capsys.readouterr().out.splitlines()

    return run


def test_a_word_in_a_docstring_is_named_with_its_line_and_what_to_write(run):
    text = 'def f():\n    """Return it.\n\n    Until somebody reads it.\n    """\n'
    advice = "who it is: a user, another client, another controller"
    assert run(text) == (1, [f'module.py:4: "somebody": write {advice}'])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1  # somebody reads it\n", 1),
        ("# It\n# goes\n# on by itself.\n", 2),
        ('raise E("nothing " "for "\n        f"somebody {x}")\n', 1),
        ('"""It goes\non by itself."""\n', 1),
        ('help = f"Ask {name}, or whoever it is."\n', 1),
    ],
    ids=["comment", "comment of several lines", "message in parts", "over a line break", "f-string"],
)
def test_comments_and_messages_are_searched(run, text, line):
    status, (found,) = run(text)
    assert status == 1
    assert found.startswith(f"module.py:{line}: ")


@pytest.mark.parametrize(
    "text",
    [
        "somebody = told(anew=seats, whom=None)\n",
        'KEY = "somebody"\nWORD = {"whom": "anew"}\n',
        '"""Return `somebody`, which ``whoever`` of RFC 1 sets."""\n',
        '"""Return the rightmost seat-belt of nobodyknows."""\n'.replace("seat-belt", "element"),
    ],
    ids=["identifier", "literal of one word", "code in a docstring", "part of a word"],
)
def test_identifiers_and_keys_are_not_searched(run, text):
    assert run(text) == (0, [])


def test_documentation_is_searched_without_its_code(run):
    text = "# Title\n\nUse `somebody`.\n\n```console\n$ somebody anew\n```\n\nIt goes on\nby itself, anew.\n"
    status, lines = run(text, "page.md")
    assert status == 1
    assert [line.partition(": write")[0] for line in lines] == [
        'page.md:9: "goes on by itself"', 'page.md:10: "anew"',
    ]  # fmt: skip


def test_code_before_a_word_does_not_change_its_line(run):
    status, (found,) = run("Use `a long name`,\n``another\nlong name`` and\nwhat somebody wrote.\n", "page.md")
    assert status == 1
    assert found.startswith('page.md:4: "somebody"')


def test_the_changelog_and_other_files_are_not_searched(run):
    assert run("somebody\n", "CHANGELOG.md") == (0, [])
    assert run("somebody\n", "notes.txt") == (0, [])


def test_an_excepted_phrase_stays_as_it_is(check_terms, run):
    terms = check_terms.Terms.parse("somebody\ta user\nallow\tsomebody else owns it\n")
    assert run('x = "PVC: somebody else owns it"\n', terms=terms) == (0, [])
    assert run('x = "PVC: somebody owns it"\n', terms=terms)[0] == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [("somebody a user\n", "line 1: a tab"), ("# ok\n(\tadvice\n", "line 2: '\\(' is not a regular expression")],
)
def test_a_list_with_a_mistake_is_rejected(check_terms, text, problem):
    with pytest.raises(ValueError, match=problem):
        check_terms.Terms.parse(text)
