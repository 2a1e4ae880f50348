"""Writes a table of text cells as Markdown, LaTeX or HTML."""

import html
import re
from dataclasses import dataclass, field

from tabulate import tabulate


@dataclass(frozen=True)
class Block:
    """A grid of cells. The first `text_columns` columns are text, the others numbers."""

    header: list[str]
    rows: list[list[str]]
    text_columns: int = 1


@dataclass(frozen=True)
class Sheet:
    """The contents of a table's page, in plain text that the writers escape."""

    heading: str
    question: str
    context: list[str]  # what the rows have in common
    blocks: list[Block]
    notes: list[str]
    todo: str = ""  # says which results are missing; empty if none are
    commands: list[str] = field(default_factory=list)  # that produce them, with comments


def markdown(sheet: Sheet) -> str:
    parts = [f"## {sheet.heading}", sheet.question, _bullets(sheet.context)]
    for block in sheet.blocks:
        rows = [[cell.replace("|", r"\|") for cell in row] for row in block.rows]
        numbers = len(block.header) - block.text_columns
        align = ["left"] * block.text_columns + ["right"] * numbers
        parts.append(
            tabulate(rows, block.header, "pipe", colalign=align, disable_numparse=True),
        )
    parts.append(_bullets(sheet.notes))
    if sheet.todo:
        parts += [sheet.todo, "\n".join(["```sh", *sheet.commands, "```"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(sheet: Sheet) -> str:
    """A table environment, with comments above it that name the missing runs."""
    lines = ["% needs \\usepackage{booktabs}"]
    if sheet.todo:
        lines += [f"% {line}" for line in [sheet.todo, *sheet.commands]]
    title = sheet.heading.partition(". ")[2]  # LaTeX numbers the table
    caption = f"{_tex(title)}. {_tex(sheet.question)} {_tex('. '.join(sheet.context))}."
    lines += [
        "\\begin{table*}",
        "\\centering\\footnotesize\\tabcolsep=3pt",
        f"\\caption{{{caption}}}",
    ]
    for block in sheet.blocks:
        numbers = len(block.header) - block.text_columns
        lines += [f"\\begin{{tabular}}{{{'l' * block.text_columns}{'r' * numbers}}}", "\\toprule"]
        lines += [_tex_row(block.header), "\\midrule"]
        lines += [_tex_row(row) for row in block.rows]
        lines += ["\\bottomrule", "\\end{tabular}", "\\par\\medskip"]
    lines += [f"{{\\footnotesize {_tex(note)}\\par}}" for note in sheet.notes]
    return "\n".join([*lines, "\\end{table*}"]) + "\n"


STYLE = """body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; }
body { padding: 0 1em; color: #222; } li, .todo { color: #555; }
table { border-collapse: collapse; margin: 1.2em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .8em; text-align: right; white-space: nowrap; }
thead th { border-bottom: 1.5px solid #222; } tr.first td { border-top: 1px solid #ddd; }
.text { text-align: left; } pre { background: #f5f5f5; padding: .8em; overflow-x: auto; }"""


def html_page(sheet: Sheet) -> str:
    """A self-contained page."""
    e = html.escape
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{e(sheet.heading)}</title>",
        f"<style>\n{STYLE}\n</style></head><body>",
        f"<h1>{e(sheet.heading)}</h1>",
        f"<p>{e(sheet.question)}</p>",
        _html_list(sheet.context),
    ]
    for block in sheet.blocks:
        lines += ["<table>", f"<thead>{_html_row(block.header, block.text_columns, 'th')}</thead>"]
        lines += [
            "<tbody>",
            *(_html_row(row, block.text_columns, "td") for row in block.rows),
            "</tbody>",
        ]
        lines.append("</table>")
    lines.append(_html_list(sheet.notes))
    if sheet.todo:
        commands = e("\n".join(sheet.commands))
        lines += [f'<p class="todo">{e(sheet.todo)}</p>', f"<pre>{commands}</pre>"]
    return "\n".join([*lines, "</body></html>"]) + "\n"


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


def _tex_row(row: list[str]) -> str:
    return " & ".join(_tex(cell) for cell in row) + " \\\\"


def _html_list(lines: list[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _html_row(row: list[str], text_columns: int, tag: str) -> str:
    cells = "".join(
        f"<{tag}{' class=text' if column < text_columns else ''}>{html.escape(cell)}</{tag}>"
        for column, cell in enumerate(row)
    )
    return f"<tr{' class=first' if row[0] else ''}>{cells}</tr>"
