"""Draw what perf.sweep measured: tables in Markdown, plots as PNG, and both in one HTML page.

Several files, for example of two commits or two devices, are compared with the first.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ghm_triton.arguments import command_parser

from ..legend import LOSSES
from ..markdown_table import as_markdown
from .page import markdown, page
from .plots import plot
from .rows import load
from .tables import times, warnings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser("perf.report", __doc__)
    parser.add_argument("files", nargs="+", metavar="FILE.csv", help="CSV files of perf.sweep")
    parser.add_argument("--out", type=Path, help="folder of the report; FILE-report beside the first file if not given")
    options = parser.parse_args(arguments)
    try:
        rows = load(options.files)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    first = Path(options.files[0])
    folder = options.out or first.with_name(f"{first.stem}-report")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        plots = plot(rows, folder)
    except ImportError:
        print("No plots: matplotlib is not installed.")
        plots = []
    (folder / "report.md").write_text(markdown(rows, plots), encoding="utf-8")
    (folder / "report.html").write_text(page(rows, plots), encoding="utf-8")
    for text in warnings(rows):
        print(text)
    for loss, name in LOSSES.items():
        print(f"{name}, forward and backward\n{as_markdown(times(rows, loss))}")
    print(f"{folder / 'report.md'}, {folder / 'report.html'} and {len(plots)} plots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
