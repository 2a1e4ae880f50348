"""Functions are small: at most 60 lines and 8 parameters.

Constructors may have more parameters, one per attribute. Run: pytest tests/test_size.py
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from onenet.system.files import REPOSITORY

LINES, PARAMETERS = 60, 8
EXCEPTIONS = {
    # torch's autograd passes a Function's arguments one by one, after the context.
    ("onenet/ops/focal.py", "forward"),
}
FILES = [
    path
    for folder in ("onenet", "analysis")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
] + [REPOSITORY / "run.py"]


def too_large(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = node.end_lineno - node.lineno + 1
        a = node.args
        names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
        parameters = len([name for name in names if name not in ("self", "cls")])
        if lines > LINES or (parameters > PARAMETERS and node.name != "__init__"):
            yield node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_functions_are_small(path):
    file = str(path.relative_to(REPOSITORY))
    assert [name for name in too_large(path) if (file, name) not in EXCEPTIONS] == []


def test_what_is_too_large_is_found(tmp_path):
    parameters = ", ".join(f"p{number}" for number in range(PARAMETERS + 1))
    body = "    pass\n" * LINES
    (tmp_path / "large.py").write_text(
        f"def many({parameters}): pass\ndef long():\n{body}def small(): pass\n"
    )
    assert list(too_large(tmp_path / "large.py")) == ["many", "long"]
