"""What is printed, and the CSV."""

import collections
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .behavior import Failed
from .cases import NAMES, Case, Place
from .columns import COLUMNS
from .machine import device_name, now, versions
from .times import Row
from .values import Errors

BROKEN = ("CUDA error", "HIP error", "illegal memory access")  # every later call fails too


class Broken(Exception):
    """The device takes no further calls."""


class Report:
    """Runs checks, prints how each went, and collects the rows of the CSV.

    Args:
        seconds: When no further check begins, counted from now.
    """

    def __init__(self, seconds: float):
        self.started, self.seconds = time.monotonic(), seconds
        self.failures: list[str] = []
        self.left_out: list[str] = []
        self.rows: list[dict] = []
        self.errors: dict[tuple[str, str], list[tuple[Errors, Case]]] = collections.defaultdict(list)

    def late(self, share: float = 1.0) -> bool:
        """Whether this share of the time has passed."""
        return time.monotonic() - self.started > share * self.seconds

    def attempt(self, name: str, check: Callable[[], str]) -> None:
        """Run a check, which returns a few words or raises, and print a line."""
        if self.late():
            self.left_out.append(name)
            return
        try:
            print(f"  {name}: {check()}", flush=True)
        except torch.OutOfMemoryError:
            self.left_out.append(f"{name} (out of memory)")
        except Exception as error:
            self.fail(name, error)

    def fail(self, name: str, error: Exception | str) -> None:
        """Record and print a failure.

        Raises:
            Broken: The error leaves the device unusable.
        """
        text = str(error) if isinstance(error, (str, Failed)) else f"{type(error).__name__}: {error}"
        print(f"  FAILED {name}: {text}", flush=True)
        self.failures.append(name)
        if any(words in text for words in BROKEN):
            raise Broken(text)

    def check_case(self, case: Case, place: Place, compute: Callable[[Case, str, torch.device], Errors]) -> None:
        """Run one comparison of values. Only a failure is printed."""
        name, status, detail, errors = str(case), "ok", "", None
        try:
            errors = compute(case, place.backend, place.device)
            self.errors[case.loss, case.dtype].append((errors, case))
            detail = f"in units of the tolerance: loss {errors.loss:.3g}, gradient {errors.gradient:.3g}"
            detail += f", moving average {errors.state:.3g}" if case.momentum else ""
            if not errors.worst <= 1:
                status = "wrong"
                self.fail(name, detail)
        except torch.OutOfMemoryError:
            status = "out of memory"
            self.left_out.append(f"{name} (out of memory)")
        except Exception as error:
            if isinstance(error, Broken):
                raise
            status, detail = "error", f"{type(error).__name__}: {error}"
            self.fail(name, error)
        finally:
            relative = errors.relative if errors is not None and case.reduction != "none" else ""
            values = {"mode": "check", "timer": "", "size": case.traits, "implementation": place.backend}
            values |= {"status": status, "detail": " ".join(detail.split())[:200], "loss_error": relative}
            self.rows.append(_common(case, place) | values)

    def print_errors(self) -> None:
        """Print the largest errors of each loss and dtype, and forget them."""
        print("  largest errors; 1.00 is the tolerance, for gradients of 16 bits one rounding:")
        print(f"  {'':30} cases   loss  gradient  moving average")
        for (loss, dtype), found in self.errors.items():
            of_loss, of_gradient, of_state = (max(values) for values in list(zip(*[one for one, _ in found]))[:3])
            state = f"{of_state:14.2f}" if any(case.momentum for _, case in found) else f"{'':14}"
            name = f"{NAMES[loss]}, {dtype}"
            print(f"  {name:30} {len(found):5} {of_loss:6.2f}  {of_gradient:8.2f}  {state}")
        self.errors.clear()

    def add_times(self, rows: list[Row], place: Place) -> None:
        """Add the rows of a case to the CSV."""
        for row in rows:
            timer = "wall" if place.device.type == "cpu" else "events"
            values = {"implementation": row.implementation, "mode": "forward_backward", "timer": timer, "status": "ok"}
            values["repetitions"] = len(row.milliseconds)
            for name, numbers in (("p50_ms", row.milliseconds), ("ratio", row.ratios)):
                low, *_, high = statistics.quantiles(numbers, n=5, method="inclusive")
                values[name] = statistics.median(numbers)
                values[name.replace("50_ms", "20_ms") if name == "p50_ms" else "ratio_p20"] = low
                values[name.replace("50_ms", "80_ms") if name == "p50_ms" else "ratio_p80"] = high
            self.rows.append(_common(row.case, place) | values)

    def write(self, path: Path) -> None:
        """Write the CSV."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def conclude(self) -> int:
        """Print the last lines, and return the exit code."""
        if self.left_out:
            shown = "; ".join(self.left_out[:3]) + ("; ..." if len(self.left_out) > 3 else "")
            print(f"left out, {len(self.left_out)}: {shown}. More time: --seconds {3 * self.seconds:.0f}")
        if not self.failures:
            print(f"ok, but {len(self.left_out)} of the checks left out" if self.left_out else "ok")
            return 0
        shown = "; ".join(self.failures[:3]) + ("; ..." if len(self.failures) > 3 else "")
        print(f"FAILED: {len(self.failures)} ({shown}). Please report everything that this command printed.")
        return 1


def _common(case: Case, place: Place) -> dict:
    classes_at = 1 if case.loss == "cross_entropy" else -1
    columns = case.shape[classes_at]
    return {
        "loss": case.loss,
        "rows": case.elements // columns,
        "columns": columns,
        "dtype": case.dtype,
        "bins": case.bins,
        "target": case.target,
        "distribution": case.distribution,
        "device": device_name(place.device) + (", interpreter" if place.interpreted else ""),
        "threads": torch.get_num_threads(),
        "elements": case.elements,
        "effort": "check",
        "measured_at": now(),
        **versions(),
    }
