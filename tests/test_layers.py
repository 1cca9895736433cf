"""Imports go downwards only: train.py and scripts -> dataset, model, criterion -> utils."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
MAY_IMPORT = {
    "utils": {"utils"},
    "model": {"model", "utils"},
    "dataset": {"dataset", "utils"},
    "criterion": {"criterion", "utils"},
    "train": {"dataset", "model", "criterion", "utils"},
    "scripts": {"scripts", "train", "dataset", "model", "criterion", "utils"},
    "benchmarks": {"benchmarks", "train", "dataset", "model", "criterion", "utils"},
}


def imported(path):
    """First names of the project's own modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        yield from (name.split(".")[0] for name in names if name.split(".")[0] in MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_downwards(room):
    files = [REPO / "train.py"] if room == "train" else sorted((REPO / room).rglob("*.py"))
    assert files
    found = {(path.name, name) for path in files for name in imported(path)}
    assert {pair for pair in found if pair[1] not in MAY_IMPORT[room]} == set()
