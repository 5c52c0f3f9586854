"""The import graph of `cdi.reconcile`, read from the sources."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import cdi.reconcile

PACKAGE = Path(cdi.reconcile.__file__).parent


def _sources() -> dict[str, Path]:
    root = PACKAGE.parent.parent
    paths = (path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_modules_import_each_other_in_no_circle():
    sources = _sources()
    graph = {
        module: {name for node in ast.walk(ast.parse(path.read_text())) for name in _imported(node) if name in sources}
        for module, path in sources.items()
    }
    assert any(graph.values())
    # Raises CycleError, which names the modules of a circle.
    TopologicalSorter(graph).prepare()


def test_no_module_hides_an_import_from_the_interpreter():
    hidden = [module for module, path in _sources().items() if "TYPE_CHECKING" in path.read_text()]
    assert hidden == []
