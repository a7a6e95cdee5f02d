"""Draws what perf.sweep measured: tables in Markdown, plots as PNG, and both in one HTML page that needs no other file.

    python -m perf.report FILE.csv... [--out FOLDER]

Several files (two commits, two devices) stand side by side.
"""

import base64
import html
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from ..arguments import command_parser
from ..markdown_table import as_markdown
from .plots import plot
from .tables import compare, load, origins, times

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Timings</title><style>
body {{ font-family: sans-serif; margin: 2em; }} img {{ max-width: 48%; }}
table {{ border-collapse: collapse; font-size: 80%; }} td, th {{ border: 1px solid #ccc; padding: 2px 6px; }}
.worse {{ color: #b00; font-weight: bold; }}
</style></head><body>
<h1>Timings</h1>
{body}
</body></html>
"""


def sections(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, table) of everything in the report."""
    yield "Measured with", origins(rows)
    files = list(dict.fromkeys(rows["file"]))
    for file in files[1:]:
        yield f"{file} against {files[0]}, forward backward", compare(rows, files[0], file)
    for mode in dict.fromkeys(rows["mode"]):
        title = f"{mode.replace('_', ' ')}: median milliseconds (ratio to binary cross entropy in the same run)"
        yield title, times(rows, mode)


def markdown(rows: pd.DataFrame, images: Sequence[Path]) -> str:
    """The report as Markdown, beside its images."""
    parts = ["# Timings\n"]
    for title, table in sections(rows):
        parts += [f"## {title}\n", as_markdown(table)]
    parts += [f"![{image.stem}]({image.name})\n" for image in images]
    return "\n".join(parts)


def page(rows: pd.DataFrame, images: Sequence[Path]) -> str:
    """The report as one HTML page, with the images in it."""
    with pd.option_context("display.max_colwidth", None):
        tables = [f"<h2>{html.escape(title)}</h2>\n{table.to_html(index=False)}" for title, table in sections(rows)]
    pictures = [
        f'<img alt="{image.stem}" src="data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}">'
        for image in images
    ]
    body = "\n".join(tables[:1] + pictures + tables[1:])
    return PAGE.format(body=body.replace("<td>worse</td>", '<td class="worse">worse</td>'))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("perf.report", __doc__)
    parser.add_argument("files", nargs="+", metavar="FILE.csv")
    parser.add_argument("--out", type=Path, help="folder of the report (default: FILE-report beside the first)")
    options = parser.parse_args(arguments)
    rows = load(options.files)
    first = Path(options.files[0])
    folder = options.out or first.with_name(f"{first.stem}-report")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        images = plot(rows, folder)
    except ImportError:
        print("no plots: matplotlib is not installed")
        images = []
    (folder / "report.md").write_text(markdown(rows, images), encoding="utf-8")
    (folder / "report.html").write_text(page(rows, images), encoding="utf-8")
    print(as_markdown(times(rows)))
    print(f"{folder / 'report.md'}, {folder / 'report.html'} and {len(images)} plots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
