"""The links and commands in the READMEs work.

Run: pytest tests/test_texts.py
"""

import re
import shlex
from pathlib import Path

import pytest

from onenet.config.compose import use_folder
from onenet.sweeps.experiments import axes_of, specs_of
from onenet.sweeps.search import requested_search
from onenet.system.files import REPOSITORY

PAGES = sorted(
    page
    for page in REPOSITORY.rglob("README.md")
    if not {".venv", "runs", "node_modules"} & {*page.relative_to(REPOSITORY).parts[:-1]}
    or page.parent == REPOSITORY / "onenet" / "runs"
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Inline between `…`, or a line of a code block with its continuation lines.
COMMAND = re.compile(r"`([^`\n]*python [^`\n]+)`|^((?:PYTHONPATH=\. )?python (?:.*\\\n)*.*)$", re.M)
PLACES = ("DIR", "COCO", "BCCD")


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as public hosts form them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def commands(script: str) -> list[tuple[str, str]]:
    """Page and arguments of each command in the READMEs that runs this script."""
    lines = []
    for page in PAGES:
        for inline, block in COMMAND.findall(page.read_text()):
            line = (inline or block).replace("\\\n", " ").removeprefix("PYTHONPATH=. ")
            if line.startswith(f"python {script}") and "…" not in line and "..." not in line:
                lines.append((str(page.relative_to(REPOSITORY)), line.removeprefix("python ")))
    return list(dict.fromkeys(lines))


def test_the_texts_are_found():
    assert len(PAGES) >= 9
    assert len(commands("run.py")) > 40


def test_the_readme_is_short():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 160
    assert len(text.encode()) <= 13_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


@pytest.mark.parametrize(("page", "line"), commands("run.py"))
def test_overrides_for_run_py_compose(page, line, tmp_path, monkeypatch):
    """Only composes and checks the config."""
    if any(word in line for word in ("--config-dir", "hydra.searchpath", "-sc ")):
        pytest.skip("test_hydra_app.py and test_own_parts.py type it")
    overrides = [w for w in shlex.split(line)[1:] if "=" in w or w.startswith("+")]
    overrides = [re.sub(rf"\b({'|'.join(PLACES)})$", str(tmp_path), word) for word in overrides]
    for split in ("train", "val"):  # the id hashes these
        for name in ("train2017", "val2017", "train", "val"):
            file = tmp_path / "annotations" / f"instances_{name}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(split)
    use_folder(None)
    axes = axes_of(overrides)
    assert requested_search(axes) or specs_of(axes)


@pytest.mark.parametrize(("page", "line"), commands("analysis/") + commands("tests/"))
def test_scripts_are_there(page, line):
    assert (REPOSITORY / shlex.split(line)[0]).is_file()
