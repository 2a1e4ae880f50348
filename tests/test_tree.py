"""The README lists every folder, each with the docstring of its package.

Run: pytest tests/test_tree.py
"""

import ast
import re

import pytest

from onenet.system.files import REPOSITORY

LINE = re.compile(r"^ *- \[(\w+)/\]\(([\w/]+)\) (.+)$", re.MULTILINE)
LISTED = {
    path: sentence for _, path, sentence in LINE.findall((REPOSITORY / "README.md").read_text())
}


def folders(*parents: str) -> set[str]:
    """The subfolders with a file that is not generated."""
    return {
        str(folder.relative_to(REPOSITORY))
        for parent in parents
        for folder in (REPOSITORY / parent).iterdir()
        if folder.is_dir()
        and not folder.name.startswith((".", "__"))
        and any(f.is_file() and f.suffix != ".pyc" for f in folder.rglob("*"))
    }


def test_the_readme_lists_every_folder_and_no_other():
    # Git ignores all other folders at the top.
    ignored = set((REPOSITORY / ".gitignore").read_text().replace("/", "").split())
    top = {name for name in folders(".") if name not in ignored and "egg-info" not in name}
    assert set(LISTED) == top | folders("onenet", "analysis")


@pytest.mark.parametrize(
    "path", [path for path in LISTED if (REPOSITORY / path / "__init__.py").is_file()]
)
def test_a_package_says_what_the_readme_says_of_it(path):
    module = ast.parse((REPOSITORY / path / "__init__.py").read_text())
    if path != "tests":
        assert ast.get_docstring(module) == LISTED[path]


PAGES = [("onenet/README.md", 20), ("README.md", 5), ("onenet/runs/README.md", 15)]


@pytest.mark.parametrize(("page", "least"), PAGES)
def test_each_row_that_says_where_something_is_names_what_is_there(page, least):
    """Functions, classes and tests are in the file linked before them."""
    folder, count = (REPOSITORY / page).parent, 0
    for row in (REPOSITORY / page).read_text().splitlines():
        if not row.startswith("| ") or "](" not in row:
            continue
        for file, names in re.findall(r"\]\(([\w./]+\.py)\)([^\[|]*)", row):
            text = (folder / file).read_text()
            for name in re.findall(r"`(\w+)`", names):
                assert re.search(rf"^(def|class) {name}\b", text, re.MULTILINE), (file, name)
                count += 1
    assert count >= least
