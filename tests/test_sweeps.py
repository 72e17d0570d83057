"""Sweeps over what is declared: what every public thing of the package must have."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "transferbench"
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))
METHOD_FILES = sorted(
    p for p in (PACKAGE / "methods").glob("*.py") if p.name not in ("__init__.py", "method.py")
)


@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda p: p.stem)
def test_a_method_file_names_its_paper(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    assert re.search(r"arXiv:? ?\d{4}\.\d{4,5}", docstring), "the docstring names no arXiv id"


@pytest.mark.parametrize("file", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_can_be_read_in_one_sitting(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400


def test_nothing_unpickles_what_a_user_hands_over() -> None:
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert not {"dill", "joblib"} & set(names), file
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
                # The name of torch's refusal, never a loader.
                assert node.attr == "UnpicklingError", f"{file}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                only = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert only.get("weights_only") == "True", f"{file}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                allow = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert allow.get("allow_pickle", "False") == "False", f"{file}:{node.lineno}"
