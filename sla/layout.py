"""Tables and cells as aligned text, Markdown and CSV.

Names come from servers and users, and none is trusted: text loses control characters (a terminal
would obey them), Markdown and CSV what their readers would take for markup or a formula.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

Cells = Sequence[Sequence[str]]

_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#~])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def plain(text: object) -> str:
    """``text`` on one line, without control characters."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def paint(text: str, colour: str, *, is_on: bool) -> str:
    """``text`` in a terminal's colour, where colours are wanted."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if is_on else text


def text_table(header: Sequence[str], rows: Cells, left: int = 1) -> list[str]:
    """Lines of a table, the first ``left`` columns flush left and the others flush right."""
    cells = [[plain(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def markdown_table(header: Sequence[str], rows: Cells, left: int = 1) -> list[str]:
    """The same as a Markdown table."""
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    escaped = [[escape_markdown(cell) for cell in row] for row in (header, *rows)]
    lines = [escaped[0], rule, *escaped[1:]]
    return [f"| {' | '.join(line)} |" for line in lines]


def escape_markdown(text: object) -> str:
    """``text`` as words in Markdown, whatever it contains."""
    return _MARKUP.sub(r"\\\1", plain(text))


def csv_text(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A CSV document; numbers as they are, text guarded against being run as a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([csv_cell(cell) for cell in row] for row in rows)
    return out.getvalue()


def csv_cell(value: object) -> object:
    """``value`` for a CSV cell; a spreadsheet would run text that starts like a formula."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
