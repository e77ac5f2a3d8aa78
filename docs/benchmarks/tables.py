"""Tables for a terminal and for Markdown, and putting them into a page."""

from __future__ import annotations

from pathlib import Path

Table = tuple[str, list[list[str]]]
"""A title, and rows of strings, the first row the head."""


def plain(title: str, rows: list[list[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([title, *("  " + line for line in lines), ""])


def markdown(title: str, rows: list[list[str]]) -> str:
    """The same in Markdown; leading blanks of the first column become an indent."""
    body = [[r[0].strip() if r[0] == r[0].lstrip() else "· " + r[0].strip(), *r[1:]] for r in rows]
    lines = ["| " + " | ".join(r) + " |" for r in body]
    return "\n".join([f"**{title}**", "", lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` in a page that has them."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = page.read_text() if page.exists() else ""
    if begin in old and end in old:
        before, after = old.split(begin, 1)[0], old.split(end, 1)[1]
        page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
