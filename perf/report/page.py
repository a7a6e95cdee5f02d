"""The report as Markdown, and as one HTML page that needs no other file."""

import base64
import html
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from ..legend import LABELS, LOSSES
from ..markdown_table import as_markdown
from ..sweep.implementations import BASELINES
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
.table {{ overflow-x: auto; margin: 0.6em 0; background:
  linear-gradient(90deg, #fff 40%, transparent) left / 60px 100% no-repeat local,
  linear-gradient(270deg, #fff 40%, transparent) right / 60px 100% no-repeat local,
  linear-gradient(90deg, #0005, transparent) left / 16px 100% no-repeat scroll,
  linear-gradient(270deg, #0005, transparent) right / 16px 100% no-repeat scroll; }}
table {{ border-collapse: collapse; font-size: 80%; }}
td, th {{ border: 1px solid #ccc; padding: 2px 6px; text-align: left; }}
td {{ white-space: nowrap; }}
thead th {{ vertical-align: bottom; }}
tbody th {{ vertical-align: top; }}
td:first-child {{ white-space: normal; }}
td:first-child, thead th:first-child {{ position: sticky; left: 0; background: #fff; }}
.upright td {{ white-space: normal; overflow-wrap: anywhere; }}
.slower, .warning {{ color: #b00; font-weight: bold; }}
.faster {{ color: #070; font-weight: bold; }}
</style></head><body>
<h1>Timings</h1>
{body}
</body></html>
"""
CELLS = (
    "Median milliseconds; in parentheses the ratio to {baseline}. On a CPU, it is the median over pairs of interleaved "
    "runs, which differs from the quotient of the two medians."
)
CHANGES = "Slower or faster: the ranges from the 20th to the 80th percentile do not overlap."


class Section(NamedTuple):
    """A table with its heading and a sentence that explains it.

    Attributes:
        upright: Whether the page shows the table with a line per column, so that long values wrap.
    """

    title: str
    note: str
    table: pd.DataFrame
    upright: bool = False


def sections(rows: pd.DataFrame) -> Iterator[Section]:
    """Yield all tables of the report, the one about the sources first."""
    yield Section("What was measured", "The same command measures again.", origins(rows), upright=True)
    first, *others = dict.fromkeys(rows["source"])
    for other in others:
        table = compare(rows, first, other)
        if not table.empty:
            yield Section(f"{other} compared with {first}, forward and backward", CHANGES, table)
    for mode, words in MODES.items():
        for loss, name in LOSSES.items():
            table = times(rows, loss, mode)
            if not table.empty:
                yield Section(f"{name}, {words}", CELLS.format(baseline=LABELS[BASELINES[loss]]), table)


def markdown(rows: pd.DataFrame, plots: Sequence[Plot]) -> str:
    """Make the report as Markdown, to be kept beside its plots."""
    parts = ["# Timings\n", *(f"**{text}**\n" for text in warnings(rows))]
    for title, note, table, _ in sections(rows):
        parts += [f"## {title}\n", f"{note}\n", as_markdown(table)]
    parts += [f"![{plot.title}]({plot.path.name})\n" for plot in plots]
    return "\n".join(parts)


def page(rows: pd.DataFrame, plots: Sequence[Plot]) -> str:
    """Make the report as one HTML page, with the plots after the tables."""
    notes = [f'<p class="warning">{html.escape(text)}</p>' for text in warnings(rows)]
    images = [
        f'<img alt="{html.escape(plot.title)}" '
        f'src="data:image/png;base64,{base64.b64encode(plot.path.read_bytes()).decode()}">'
        for plot in plots
    ]
    body = [*notes, *map(_section, sections(rows)), "<h2>Plots</h2>", '<div class="plots">', *images, "</div>"]
    return PAGE.format(body="\n".join(body))


def _section(section: Section) -> str:
    with pd.option_context("display.max_colwidth", None):
        if section.upright:
            table = section.table.T.to_html(header=False, border=0, classes="upright")
        else:
            table = section.table.to_html(index=False, border=0)
    for word in ("slower", "faster"):
        table = table.replace(f"<td>{word}</td>", f'<td class="{word}">{word}</td>')
    title, note = html.escape(section.title), html.escape(section.note)
    return f'<h2>{title}</h2>\n<p>{note}</p>\n<div class="table">{table}</div>'
