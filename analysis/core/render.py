"""Writes a page of tables as Markdown, LaTeX or HTML.

A table is a DataFrame of text: the index holds what is no number.
"""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd


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


def markdown_table(table: pd.DataFrame) -> str:
    align = ["left"] * table.index.nlevels + ["right"] * len(table.columns)
    escaped = table.reset_index().map(lambda cell: cell.replace("|", r"\|"))
    return escaped.to_markdown(index=False, tablefmt="pipe", colalign=align, disable_numparse=True)


def latex(page: Page) -> str:
    """A table environment, with comments above it that name the missing runs."""
    lines = ["% needs \\usepackage{booktabs}"]
    if page.todo:
        lines += [f"% {line}" for line in [page.todo, *page.commands]]
    title = page.heading.partition(". ")[2]  # LaTeX numbers the table
    caption = f"{_tex(title)}. {_tex(page.question)} {_tex('. '.join(page.context))}."
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


STYLE = """body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; }
body { padding: 0 1em; color: #222; } li, .todo { color: #555; }
table { border-collapse: collapse; margin: 1.2em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .8em; text-align: right; white-space: nowrap; }
thead th { border-bottom: 1.5px solid #222; } td { border-top: 1px solid #ddd; }
pre { background: #f5f5f5; padding: .8em; overflow-x: auto; }"""
LEFT = ".left{0} :is(th, td):nth-child(-n+{0}) {{ text-align: left; }}"


def html_page(page: Page) -> str:
    """A self-contained page."""
    e = html.escape
    left = "\n".join(LEFT.format(count) for count in {t.index.nlevels for t in page.tables})
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{e(page.heading)}</title>",
        f"<style>\n{STYLE}\n{left}\n</style></head><body>",
        f"<h1>{e(page.heading)}</h1>",
        f"<p>{e(page.question)}</p>",
        _html_list(page.context),
        *map(_html_table, page.tables),
        _html_list(page.notes),
    ]
    if page.todo:
        commands = e("\n".join(page.commands))
        lines += [f'<p class="todo">{e(page.todo)}</p>', f"<pre>{commands}</pre>"]
    return "\n".join([*lines, "</body></html>"]) + "\n"


def _html_table(table: pd.DataFrame) -> str:
    flat, name = table.reset_index(), f"left{table.index.nlevels}"
    with pd.option_context("display.max_colwidth", None):
        return flat.to_html(index=False, border=0, justify="unset", classes=name)


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _html_list(lines: list[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


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
