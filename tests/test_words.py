"""One word per thing: the table in onenet/README.md, and names that the code no longer uses.

Run: pytest tests/test_words.py
"""

import ast
import re
import subprocess
from collections import Counter

import pytest

from onenet.system.files import REPOSITORY

# Participles and metaphors; onenet/README.md has the nouns to use instead.
OLD_NAMES = {
    *(
        "found",
        "known",
        "kept",
        "given",
        "wanted",
        "asked",
        "said",
        "told",
        "taken",
        "seen",
        "made",
    ),
    *("listed", "chosen", "joined", "late", "look", "looks", "settle", "turn", "turns", "share"),
    *("shares", "place", "places", "piece", "pieces", "word", "words"),
}
ON_DISK = {("onenet/config/schema.py", "looks")}  # the key eval.looks
OLD_CLASSES = (
    r"\b(Cell|Planned|Handle|Place|HydrasLauncher|TrainingRecord|Looker|Judged|Replayed)\b"
)


def files(*patterns: str) -> list[str]:
    command = ["git", "-C", str(REPOSITORY), "ls-files", *patterns]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


CODE = files("onenet/*.py", "analysis/*.py", "run.py")
TREES = {file: ast.parse((REPOSITORY / file).read_text()) for file in CODE}


def names(tree: ast.Module) -> set[str]:
    """All names in the code: variables, arguments, attributes, functions, classes."""
    result = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            result.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            result.add(node.attr)
        elif isinstance(node, ast.arg):
            result.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            result.add(node.name)
    return result


@pytest.mark.parametrize("file", CODE)
def test_no_participle_and_no_metaphor_is_a_name(file):
    old = {name for name in names(TREES[file]) if name.strip("_") in OLD_NAMES}
    assert {(file, name) for name in old} <= ON_DISK


def test_no_two_classes_share_a_name():
    classes = Counter(
        node.name for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in classes.items() if count > 1] == []


def test_old_classes_are_gone_from_code_and_texts():
    texts = [file for file in files("*.py", "*.md", "*.yaml") if file != "tests/test_words.py"]
    for file in texts:
        old = set(re.findall(OLD_CLASSES, (REPOSITORY / file).read_text()))
        assert not old - ({"Handle"} if file.startswith("onenet/sweeps/") else set()), file


def test_no_plural_is_made_by_slicing():
    for file in CODE:
        assert not re.search(r"""(['"])e?s\1\[""", (REPOSITORY / file).read_text()), file


def test_duplicates_are_called_so():
    for file in files("*.py", "*.md", "*.yaml"):
        if file.startswith("analysis/paper") or file == "tests/test_words.py":
            continue
        for line in (REPOSITORY / file).read_text().splitlines():
            quoted = "produced by the model without classi" in line  # from the paper
            assert quoted or not re.search("redundant box", line, re.IGNORECASE), (file, line)


def test_the_words_of_the_table_are_in_the_code():
    text = (REPOSITORY / "onenet" / "README.md").read_text()
    table = text.split("## Words")[1].split("##")[0]
    code = {name for tree in TREES.values() for name in names(tree)}
    for name in re.findall(r"`([A-Za-z_]+)`", table):
        assert name in code | {"accumulate", "P"}, name
    for path in re.findall(r"`([\w/.]+/[\w.]*)`", table):
        assert (REPOSITORY / path).exists() or (REPOSITORY / "onenet" / path).exists(), path
