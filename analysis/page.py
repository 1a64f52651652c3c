"""HTML of a self-contained page: no script, nothing loaded from elsewhere, readable on a phone and in print."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1a1a1a; background: #fff;
       max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem;
     break-after: avoid; }
p { margin: .5rem 0; }
.under { color: #555; }
.answer { border-left: 4px solid #0072B2; background: #f1f7fb; padding: .7rem 1rem; margin: 1rem 0; font-size: 1.1rem; }
figure { margin: 1rem 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; }
.pair figure { flex: 1 1 20rem; margin: 0; min-width: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .45rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th { vertical-align: bottom; font-weight: 600; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 11rem; }
td small, th small { color: #666; font-weight: 400; line-height: 1.3; display: block; }
tr.winner td { background: #f1f7fb; font-weight: 600; }
tr { break-inside: avoid; }
pre { background: #f6f6f6; padding: .6rem .8rem; font-size: .82rem; margin: .4rem 0; white-space: pre-wrap;
      overflow-wrap: anywhere; break-inside: avoid; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .15rem 1rem; margin: .5rem 0; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
@page { size: A4; margin: 15mm; }
@media print { body { max-width: none; margin: 0; padding: 0; font-size: 10pt; } .wide { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding: .15rem .25rem; } pre { font-size: 8pt; }
  th:first-child, td:first-child { min-width: 7rem; }
  .answer { font-size: 11.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        "<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """A section's title."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_classed(kind)}>{escape(text)}</p>"


def figure(png: Path, alt: str, caption: str, width: float = 3.5) -> str:
    """A picture inside the page; ``width`` in inches, at which its text has the size of the page's small print."""
    data = base64.b64encode(png.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(alt)}" style="width:{width * 1.25:.3g}in" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], winner: int | None = None) -> str:
    """A table; the row ``winner`` stands out, and what follows a line break in a cell is said small."""
    cells = "".join(_cell(h).replace("td>", "th>") for h in head)
    body = "".join(
        f"<tr{_classed('winner' if i == winner else '')}>" + "".join(_cell(c) for c in row) + "</tr>\n"
        for i, row in enumerate(rows)
    )
    return f'<div class="wide"><table>\n<thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    first, _, rest = text.partition("\n")
    return f"<td>{escape(first)}" + (f"<small>{escape(rest)}</small>" if rest else "") + "</td>"


def heading_one(text: str) -> str:
    """The page's title."""
    return f"<h1>{escape(text)}</h1>"


def commands(*lines: str) -> str:
    """Commands to be pasted."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs) + "</dl>"


def _classed(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
