"""The report: what its tables and plots show, and what they warn of."""

import re

import pytest
import torch

pd = pytest.importorskip("pandas")
matplotlib = pytest.importorskip("matplotlib")

from ghm_triton.check.columns import COLUMNS
from perf import legend
from perf.report import __main__ as command
from perf.report import plots
from perf.report.page import markdown, page, sections
from perf.report.rows import load
from perf.report.tables import compare, origins, times, warnings
from perf.sweep.implementations import find_implementations

ORIGIN = {"platform": "Linux", "python": "3.11", "torch": "2.14", "triton": "", "ghm_triton": "0.1", "commit": "abc"}
COMMON = {"timer": "wall", "size": "", "dtype": "float32", "distribution": "trained", "status": "ok", "device": "CPU"}


def row(loss, implementation, elements, ms, **fields) -> dict:
    own = {"bins": 30, "target": "index"} if loss == "ghmc" else {"bins": 10, "target": "dense"}
    own |= {"loss": loss, "implementation": implementation, "elements": elements, "mode": "forward_backward"}
    own |= {
        "p20_ms": ms * 0.9,
        "p50_ms": ms,
        "p80_ms": ms * 1.1,
        "ratio": 2.0,
        "ratio_p20": 1.9,
        "ratio_p80": 2.1,
    }
    own |= {"gb_per_s": 1.0, "peak_extra_bytes": 1e6, "threads": 2, "effort": "full", "rows": 1, "columns": elements}
    return COMMON | ORIGIN | own | {"measured_at": "2026-01-01"} | fields


ROWS = [
    *(row("ghmc", name, n, ms * n / 1000) for n in (1000, 2000) for name, ms in (("eager", 2.0), ("bce", 1.0))),
    *(row("ghmc", name, 2000, 3.0, bins=100) for name in ("eager", "bce")),
    *(row("ghmr", name, 1000, 1.0) for name in ("eager", "smooth_l1")),
]


def write(path, rows) -> str:
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False)
    return str(path)


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "first.csv", ROWS)


def test_times(path):
    """A column per implementation of that loss and per setting that varies, and no other; names instead of codes."""
    rows = load([path])
    table = times(rows, "ghmc")
    assert list(table.columns) == ["elements", "bins", "this package, eager", "cross entropy"]
    assert table.values.tolist() == [
        ["1,000", 30, "2 ms (2.00x)", "1 ms (2.00x)"],
        ["2,000", 30, "4 ms (2.00x)", "2 ms (2.00x)"],
        ["2,000", 100, "3 ms (2.00x)", "3 ms (2.00x)"],
    ]
    assert list(times(rows, "ghmr").columns) == ["elements", "this package, eager", "smooth L1"]
    origin, ghmc, ghmr = sections(rows)
    assert origin.title == "What was measured"
    assert ghmc.title == "GHM-C, forward and backward" and "the ratio to cross entropy" in ghmc.note
    assert ghmr.title == "GHM-R, forward and backward" and "the ratio to smooth L1" in ghmr.note


def test_no_column_is_empty(path, tmp_path):
    later = write(tmp_path / "later.csv", ROWS)
    for section in sections(load([path, later])):
        for name in section.table:
            assert (section.table[name].astype(str) != "").any() or name == "change", (section.title, name)


def test_failed_rows_tell_why(tmp_path):
    rows = [*ROWS, row("ghmc", "region_loop", 1000, float("nan"), status="wrong", ratio=None)]
    table = times(load([write(tmp_path / "a.csv", rows)]), "ghmc")
    assert list(table["loop over regions"]) == ["wrong", "", ""]


@pytest.mark.parametrize(
    "fields, options",
    [
        ({}, "--device cpu --threads 2"),
        ({"effort": "quick", "threads": 1}, "--quick --device cpu --threads 1"),
        ({"timer": "graph"}, "--device auto --threads 2"),
    ],
    ids=["full", "quick", "gpu"],
)
def test_command_is_complete(tmp_path, fields, options):
    path = write(tmp_path / "a.csv", [row("ghmc", "bce", 1000, 1.0, **fields)])
    assert list(origins(load([path]))["command"]) == [f"python -m perf.sweep {options} --out {path}"]


def test_changes_beyond_the_spread_are_marked(path, tmp_path):
    """Only where the ranges from the 20th to the 80th percentile do not overlap."""
    factors = {"eager": 2.0, "bce": 1.1, "smooth_l1": 0.5}
    changed = [
        one | {name: one[name] * factors[one["implementation"]] for name in ("p20_ms", "p50_ms", "p80_ms")}
        for one in ROWS
    ]
    table = compare(load([path, write(tmp_path / "later.csv", changed)]), "first", "later")
    expected = {
        "this package, eager": ("2.00", "slower"),
        "cross entropy": ("1.10", ""),
        "smooth L1": ("0.50", "faster"),
    }
    assert len(table) == len(ROWS)
    for one in table.to_dict("records"):
        assert (one["ratio"], one["change"]) == expected[one["implementation"]]


@pytest.mark.slow
def test_different_threads_are_warned_of(path, tmp_path, capsys, monkeypatch):
    """In all outputs; of two files, and of two numbers of threads in one file."""
    monkeypatch.setattr(command, "plot", lambda rows, folder: [])
    one_thread = [one | {"threads": 1} for one in ROWS]
    other = write(tmp_path / "other.csv", one_thread)
    expected = "first and other were measured with 2 threads and 1 thread."
    rows = load([path, other])
    assert len(warnings(rows)) == 1 and expected in warnings(rows)[0]
    assert expected in markdown(rows, []) and expected in page(rows, [])
    assert command.main([path, other]) == 0 and expected in capsys.readouterr().out
    both = load([write(tmp_path / "both.csv", ROWS + one_thread)])
    assert set(both["source"]) == {"both, CPU, 2 threads", "both, CPU, 1 thread"}
    assert len(warnings(both)) == 1 and len(compare(both, *both["source"].unique())) == len(ROWS)
    assert warnings(load([path, write(tmp_path / "same.csv", ROWS)])) == []


def test_every_implementation_has_a_name_and_a_color_of_its_own():
    names = {one.name for one in find_implementations(torch.device("cpu"))}
    others = {"triton", "mmdet", "liger", "eager_compiled", "bce_compiled", "cross_entropy_compiled"}
    assert names | others == set(legend.LABELS) == set(legend.COLORS)
    pairs = {(legend.LABELS[name], color) for name, color in legend.COLORS.items()}
    assert len(pairs) == len(set(legend.LABELS.values())) == len(set(legend.COLORS.values()))
    assert len(set(legend.PAIR_COLORS.values())) == len(legend.PAIR_COLORS)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, kept open."""
    from matplotlib import pyplot

    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    yield kept
    monkeypatch.undo()
    for figure in kept:
        pyplot.close(figure)


@pytest.mark.slow
def test_plots(path, tmp_path, figures):
    """One color per implementation and one line style per file in all; titles differ; no legend over the data.

    Sizes of a softmax differ in their number of classes: no line joins them.
    """
    softmax = [row("cross_entropy", "eager", n, 1.0, bins=30, target="index", size=str(n)) for n in (1000, 2000)]
    later = write(tmp_path / "later.csv", [one | {"p50_ms": one["p50_ms"] * 2} for one in ROWS] + softmax)
    drawn = plots.plot(load([path, later]), tmp_path)
    assert len(drawn) == 6 and all(plot.path.read_bytes().startswith(b"\x89PNG") for plot in drawn)
    titles = {" ".join(figure.get_suptitle().split()) for figure in figures}
    assert len({plot.title for plot in drawn}) == len(titles) == 6
    assert {"GHM-C: time relative to cross entropy over bins", "GHM-C: time over elements"} <= titles
    styles = {}
    for figure in figures:
        (axes,) = figure.axes
        lines = axes.get_lines()
        assert len(lines) == 4  # two implementations in two files
        for line in lines:
            styles.setdefault(line.get_color(), set()).add(line.get_linestyle())
        (frame,) = (legend.get_window_extent() for legend in figure.legends)
        assert axes.get_legend() is None and not frame.overlaps(axes.get_window_extent())
    assert styles == {legend.COLORS[name]: {"-", "--"} for name in ("eager", "bce")}


@pytest.mark.slow
def test_page_needs_no_other_file(path, tmp_path, capsys):
    """One HTML page with the plots in it, that fits a phone: tables scroll by themselves."""
    assert command.main([path]) == 0 and "(2.00x)" in capsys.readouterr().out
    folder = tmp_path / "first-report"
    whole = (folder / "report.html").read_text(encoding="utf-8")
    images = {file.name for file in folder.glob("*.png")}
    assert whole.count("data:image/png;base64,") == len(images) == 6
    assert 'src="http' not in whole and "href" not in whole and 'name="viewport"' in whole
    assert whole.count("<table") == whole.count('<div class="table"><table')
    assert whole.rindex("<table") < whole.index("<img")  # what was measured, in numbers, comes first
    assert whole.count('class="dataframe upright"') == 1  # the long values of the sources wrap
    links = re.findall(r"\]\((.*?)\)", (folder / "report.md").read_text(encoding="utf-8"))
    assert set(links) == images


def test_files_that_cannot_be_read_end_the_command(path, tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("device,threads\nCPU,2\n")
    for files, message in (
        ([path, path], "must have different names"),
        ([path + "x"], "No such file"),
        ([path, str(other)], "other.csv must be a CSV of perf.sweep, got one without the column 'loss'"),
    ):
        with pytest.raises(SystemExit) as end:
            command.main(files)
        assert end.value.code == 2 and message in capsys.readouterr().err
