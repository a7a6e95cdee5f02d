"""Check that the losses compute what they must on this machine, in about two minutes.

On a GPU it compares the kernels with float64, runs what must hold besides (equal bits, no synchronization, CUDA graphs,
torch.compile), and times them beside cross entropy and focal loss. Without a GPU it checks the eager backend, and with
TRITON_INTERPRET=1 the kernels in Triton's interpreter. The last line is "ok" (exit code 0) or "FAILED: ..." (1).

    python -m ghm_triton.check
    python -m ghm_triton.check --device cuda:1 --csv check.csv
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..arguments import command_parser, real
from ..arguments import device as existing_device
from ..backend import kernels
from ..interpreter import interpreting
from .behavior import capture_cuda_graph, check_bits, check_compile, check_graph, check_no_waits, check_other_device
from .cases import NAMES, Case, Place, plan_cases
from .machine import describe_machine, find_places, free_bytes
from .report import Broken, Report
from .times import ROUNDS, clock_of, describe_rows, measure_case, timed_cases
from .values import check_values

VALUES_SHARE = 0.65  # of the time; the last cases are left out if compiling takes longer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser("ghm_triton.check", __doc__)
    parser.add_argument("--device", type=existing_device, default="auto", help="auto, cpu, cuda, cuda:N, xpu")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row per check and time for perf.report")
    parser.add_argument("--seconds", type=real(above=0), default=100, help="no check begins after this time")
    options = parser.parse_args(arguments)
    device = _with_index(options.device)
    if device.type in ("cuda", "xpu") and kernels is not None and interpreting():
        parser.error("TRITON_INTERPRET must not be set to check a GPU; --device cpu checks the interpreter")
    for line in describe_machine(device):
        print(line)
    report = Report(options.seconds)
    try:
        for place in find_places(device):
            _check_place(place, report)
    except Broken:
        report.left_out.append("all that follows, as the device takes no further calls")
    finally:
        if options.csv is not None:
            report.write(options.csv)
    return report.conclude()


def _with_index(device: torch.device) -> torch.device:
    """Make the GPU the current device, and name its index."""
    if device.type not in ("cuda", "xpu"):
        return device
    module = getattr(torch, device.type)
    if device.index is not None:
        module.set_device(device)
    return torch.device(device.type, module.current_device())


def _check_place(place: Place, report: Report) -> None:
    what = "the kernels in Triton's interpreter" if place.interpreted else f"{place.backend} on {place.device}"
    print(f"\n{what}: losses and gradients beside float64", flush=True)
    for case in plan_cases(place, free_bytes(place.device)):
        if report.late(VALUES_SHARE):
            report.left_out.append(str(case))
        else:
            report.check_case(case, place, check_values)
    report.print_errors()
    print(f"\n{what}: what must hold besides", flush=True)
    check_behavior(place, report)
    if not place.interpreted:
        print(f"\n{what}: forward and backward, medians of {ROUNDS} interleaved runs, ratio to cross entropy")
        for case in timed_cases(place):
            report.attempt(f"{NAMES[case.loss]}, {case.dtype}", lambda case=case: _time(case, place, report))


def check_behavior(place: Place, report: Report) -> None:
    """Check what applies to the place."""
    if place.device.type != "cpu" and place.backend == "eager":
        return  # its sums may differ in the last bits, and it waits
    report.attempt("equal bits", lambda: check_bits(place))
    if place.device.type == "cuda":
        report.attempt("no synchronization", lambda: check_no_waits(place))
        report.attempt("CUDA graph", lambda: check_graph(place, capture_cuda_graph))
    if place.device.type != "cpu":
        count = getattr(torch, place.device.type).device_count()
        others = [torch.device(place.device.type, index) for index in range(count) if index != place.device.index]
        if others:
            report.attempt("second device", lambda: check_other_device(place, others[0]))
        else:
            print("  second device: there is none")
    else:
        print("  not checked without a GPU: synchronization, CUDA graphs, a second device")
    report.attempt("torch.compile", lambda: check_compile(place))


def _time(case: Case, place: Place, report: Report) -> str:
    rows = measure_case(case, place, clock_of(place.device))
    report.add_times(rows, place)
    return "\n" + "\n".join(describe_rows(rows))


if __name__ == "__main__":
    sys.exit(main())
