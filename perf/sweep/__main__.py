"""Time the losses and their alternatives over sizes, dtypes, bins, targets and distributions of the logits.

Rows are written one by one. Started again with the same file, the sweep continues where it stopped.
"""

import os
import re
import sys
from collections.abc import Sequence

import torch

from ghm_triton.arguments import command_parser, whole
from ghm_triton.check.columns import COLUMNS, KEY

from ..resumable_csv import ResumableCsv
from .cases import BASE, plan_cases
from .gpu_meters import open_meter
from .implementations import find_implementations
from .runner import FULL, QUICK, sweep

OUT = "perf/results/sweep-{device}.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser("perf.sweep", __doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases, under a minute on two CPU cores")
    parser.add_argument("--losses", nargs="+", choices=BASE, default=list(BASE), help="losses whose cases are measured")
    parser.add_argument("--device", default="auto", help="auto (the first GPU, else the CPU), cpu, cuda, xpu or cuda:N")
    parser.add_argument("--threads", type=whole(1), default=torch.get_num_threads(), help="of PyTorch on the CPU")
    parser.add_argument("--out", default=OUT, help='CSV to write or continue; {device} is its name, with "-quick"')
    options = parser.parse_args(arguments)
    try:
        meter = open_meter(options.device)
        name = re.sub(r"\W+", "-", "cpu" if meter.device.type == "cpu" else meter.name).strip("-").lower()
        path = options.out.replace("{device}", name + ("-quick" if options.quick else ""))
        table = ResumableCsv(path, COLUMNS, KEY)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(options.threads)
    cases = [case for case in plan_cases(quick=options.quick, device=meter.device) if case.loss in options.losses]
    print(f"{meter.name}, {options.threads} threads, PyTorch {torch.__version__} -> {table.path}")
    if meter.device.type == "cpu" and hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        print(f"The machine is busy (load {os.getloadavg()[0]:.1f}). Threads will wait; --threads 1 suffers least.")
    try:
        implementations = find_implementations(meter.device, compiled=not options.quick)
        sweep(cases, implementations, table, meter, QUICK if options.quick else FULL)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {len(table.done)} rows are in {table.path}; the same command continues from there.")
        return 130
    print(f"{len(table.done)} rows in {table.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
