"""Writes a page of tables as Markdown, LaTeX or HTML.

A table is a DataFrame of text: the index holds its text columns, the columns are numbers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, Template

from onenet.system.files import REPOSITORY

TEMPLATES = REPOSITORY / "analysis" / "page"
NOTES = yaml.safe_load((TEMPLATES / "notes.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Page:
    """The contents of a page, in plain text that the writers escape."""

    heading: str
    question: str
    context: list[str]  # what the rows have in common
    tables: list[pd.DataFrame]
    notes: list[str]
    todo: str = ""  # says which results are missing; empty if none are
    commands: list[str] = field(default_factory=list)  # that produce them, with comments


def markdown(page: Page) -> str:
    parts = [f"## {page.heading}", page.question, _bullets(page.context)]
    parts += [markdown_table(table) for table in page.tables]
    parts.append(_bullets(page.notes))
    if page.todo:
        parts += [page.todo, "\n".join(["```sh", *page.commands, "```"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(table: pd.DataFrame, numbers: str = "right") -> str:
    align = ["left"] * table.index.nlevels + [numbers] * len(table.columns)
    escaped = table.reset_index().map(lambda cell: cell.replace("|", r"\|"))
    return escaped.to_markdown(index=False, tablefmt="pipe", colalign=align, disable_numparse=True)


def latex(page: Page) -> str:
    """A table environment, with comments above it that name the missing runs."""
    lines = ["% needs \\usepackage{booktabs}"]
    if page.todo:
        lines += [f"% {line}" for line in [page.todo, *page.commands]]
    title = page.heading.partition(". ")[2] or page.heading  # LaTeX numbers the table
    question = f" {_tex(page.question)}" if page.question else ""
    caption = f"{_tex(title)}.{question} {_tex('. '.join(page.context))}."
    lines += [
        "\\begin{table*}",
        "\\centering\\footnotesize\\tabcolsep=3pt",
        f"\\caption{{{caption}}}",
    ]
    for table in page.tables:
        align = "l" * table.index.nlevels + "r" * len(table.columns)
        style = table.reset_index().map(_tex).style.hide(axis="index").format_index(_tex, axis=1)
        lines += [style.to_latex(hrules=True, column_format=align).rstrip(), "\\par\\medskip"]
    lines += [f"{{\\footnotesize {_tex(note)}\\par}}" for note in page.notes]
    return "\n".join([*lines, "\\end{table*}"]) + "\n"


def template(name: str) -> Template:
    return Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True).get_template(name)


def html_page(page: Page) -> str:
    """A self-contained page."""
    with pd.option_context("display.max_colwidth", None):
        return template("table.html").render(page=page) + "\n"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "×": "$\\times$",
    "²": "$^2$",
    **{c: f"${c}$" for c in "<>|"},
    "…": "\\ldots{}",
}


def _tex(text: str) -> str:
    escaped = "".join(TEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)  # a minus, not a hyphen


def csv(frame: pd.DataFrame) -> str:
    """CSV of data instead of text cells."""
    return frame.to_csv(index=False, lineterminator="\n")


WRITERS = {"markdown": (".md", markdown), "latex": (".tex", latex), "html": (".html", html_page)}
FORMATS = (*WRITERS, "csv")


def texts(
    name: str, formats: Sequence[str], page: Callable[[], Page], data: Callable[[], pd.DataFrame]
) -> dict[str, str]:
    """Returns the text of a page in each format, by file name."""
    files = {}
    for form in dict.fromkeys(formats):
        if form == "csv":
            files[f"{name}.csv"] = csv(data())
        else:
            suffix, write = WRITERS[form]
            files[name + suffix] = write(page())
    return files
