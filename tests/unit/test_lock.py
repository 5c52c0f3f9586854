"""Tests of scripts/lock: what its check finds in the lock files, without a network."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import sys

import pytest

from tests.doc_blocks import ROOT


@pytest.fixture(scope="module")
def lock():
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader = importlib.machinery.SourceFileLoader("scripts_lock", str(ROOT / "scripts" / "lock"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    yield module
    del sys.modules[loader.name]


@pytest.fixture
def tree(lock, tmp_path):
    """Return a directory with the repository's requirements and lock files."""
    for path in ("pyproject.toml", lock.RUNTIME, lock.DEVELOPMENT, lock.CLIENTS_INPUT, lock.CLIENTS):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_lock_files_satisfy_pyproject(lock, tree, capsys):
    assert lock.check(tree) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"aiohttp>=3.12"', '"aiohttp>=99"', '"aiohttp>=99" of pyproject.toml does not allow the locked version 3.'),
        (
            '"aiohttp>=3.12"',
            '"aiohttp>=3.12", "new-package"',
            '"new-package" of pyproject.toml is not locked for Python 3.11',
        ),
        ("hatchling>=1.25", "hatchling>=99", '"hatchling>=99" of pyproject.toml does not allow'),
        ('"hypothesis>=6.100"', '"hypothesis>=99"', '"hypothesis>=99" of pyproject.toml does not allow'),
        ("python_version < '3.14'", "python_version < '3.15'", "is not locked for Python 3.14"),
    ],
    ids=["version", "new dependency", "build", "group", "one Python"],
)
def test_a_requirement_that_is_not_locked_is_named(lock, tree, capsys, old, new, problem):
    replace(tree / "pyproject.toml", old, new)
    assert lock.check(tree) == 1
    assert problem in capsys.readouterr().err


def test_a_client_that_is_not_locked_is_named(lock, tree, capsys):
    replace(tree / lock.CLIENTS_INPUT, "ansible>=12,<13", "ansible>=99")
    assert lock.check(tree) == 1
    found = capsys.readouterr().err
    assert f'"ansible>=99" of {lock.CLIENTS_INPUT} does not allow the locked version 12.' in found
    assert found.endswith("Run scripts/lock --clients\n")


def test_a_package_without_a_hash_is_named(lock, tree, capsys):
    path = tree / lock.DEVELOPMENT
    lines = path.read_text().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if line.startswith("yarl=="))
    kept = [
        line
        for number, line in enumerate(lines)
        if number <= first or not line.startswith("    --hash") or number < first
    ]
    path.write_text("".join(kept))
    assert lock.check(tree) == 1
    assert f"{lock.DEVELOPMENT}: yarl has no hash. Run scripts/lock\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["--index-url https://example.org/simple", "a @ https://example.org/a.whl", "-f wheels"]
)
def test_an_index_in_a_lock_file_is_rejected(lock, tree, capsys, line):
    path = tree / lock.RUNTIME
    path.write_text(f"{path.read_text()}{line}\n")
    assert lock.check(tree) == 1
    assert f"names an index: {line}" in capsys.readouterr().err


def test_the_runtime_is_locked_as_for_development(lock, tree, capsys):
    replace(tree / lock.RUNTIME, "\nidna==", "\nidna==0.")
    assert lock.check(tree) == 1
    assert "is not what requirements/development.txt locks" in capsys.readouterr().err


def test_a_missing_lock_file_is_named(lock, tree, capsys):
    (tree / lock.RUNTIME).unlink()
    assert lock.check(tree) == 1
    assert capsys.readouterr().err == f"{lock.RUNTIME} does not exist. Run scripts/lock\n"
