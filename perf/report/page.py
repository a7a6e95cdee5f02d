"""The report as Markdown, and as one HTML page that needs no other file."""

import base64
import html
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from ..legend import LOSSES
from ..markdown_table import as_markdown
from .plots import Plot
from .rows import MODES
from .tables import compare, origins, times, warnings

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Timings</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ font-family: sans-serif; margin: 1em auto; padding: 0 1em; max-width: 1240px; }}
h2 {{ font-size: 1.2em; margin: 2em 0 0.3em; }}
p {{ margin: 0.3em 0; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1em; }}
img {{ width: 100%; height: auto; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 80%; margin: 0.6em 0; }}
td, th {{ border: 1px solid #ccc; padding: 2px 6px; text-align: left; white-space: nowrap; }}
.slower, .warning {{ color: #b00; font-weight: bold; }}
.faster {{ color: #070; font-weight: bold; }}
</style></head><body>
<h1>Timings</h1>
{body}
</body></html>
"""
CELLS = "Median milliseconds; in parentheses the ratio to cross entropy, measured in the same rounds."
CHANGES = "Slower or faster: the ranges from the 20th to the 80th percentile do not overlap."


class Section(NamedTuple):
    """A table with its heading and a sentence that explains it."""

    title: str
    note: str
    table: pd.DataFrame


def sections(rows: pd.DataFrame) -> Iterator[Section]:
    """All tables of the report, the one about the sources first."""
    yield Section("What was measured", "The same command measures again.", origins(rows))
    first, *others = dict.fromkeys(rows["source"])
    for other in others:
        table = compare(rows, first, other)
        if not table.empty:
            yield Section(f"{other} compared with {first}, forward and backward", CHANGES, table)
    for mode, words in MODES.items():
        for loss, name in LOSSES.items():
            table = times(rows, loss, mode)
            if not table.empty:
                yield Section(f"{name}, {words}", CELLS, table)


def markdown(rows: pd.DataFrame, plots: Sequence[Plot]) -> str:
    """The report as Markdown, to be kept beside its plots."""
    parts = ["# Timings\n", *(f"**{text}**\n" for text in warnings(rows))]
    for title, note, table in sections(rows):
        parts += [f"## {title}\n", f"{note}\n", as_markdown(table)]
    parts += [f"![{plot.title}]({plot.path.name})\n" for plot in plots]
    return "\n".join(parts)


def page(rows: pd.DataFrame, plots: Sequence[Plot]) -> str:
    """The report as one HTML page with the plots in it."""
    notes = [f'<p class="warning">{html.escape(text)}</p>' for text in warnings(rows)]
    first, *others = map(_section, sections(rows))
    images = [
        f'<img alt="{html.escape(plot.title)}" '
        f'src="data:image/png;base64,{base64.b64encode(plot.path.read_bytes()).decode()}">'
        for plot in plots
    ]
    body = [*notes, first, '<div class="plots">', *images, "</div>", *others]
    return PAGE.format(body="\n".join(body))


def _section(section: Section) -> str:
    with pd.option_context("display.max_colwidth", None):
        table = section.table.to_html(index=False, border=0)
    for word in ("slower", "faster"):
        table = table.replace(f"<td>{word}</td>", f'<td class="{word}">{word}</td>')
    title, note = html.escape(section.title), html.escape(section.note)
    return f'<h2>{title}</h2>\n<p>{note}</p>\n<div class="table">{table}</div>'
