"""The columns of the CSV, which are those of perf.sweep."""

KEY = [  # what was measured; no two rows have the same
    "loss",
    "implementation",
    "mode",
    "timer",  # "wall", "events", or of the sweep "host" or "graph"
    "size",
    "rows",
    "columns",
    "dtype",
    "bins",
    "target",
    "distribution",
    "device",
    "threads",
]
VALUES = [
    "elements",
    "effort",  # "check", or of the sweep "quick" or "full"
    "status",  # "ok", "wrong", "out of memory" or "error"; only "ok" has times
    "detail",
    "repetitions",
    "p50_ms",
    "p20_ms",
    "p80_ms",
    "min_bytes",  # arguments read once per pass, gradient written once
    "gb_per_s",  # min_bytes in p50_ms
    "copy_gb_per_s",  # of a copy on this device, measured with this case
    "copy_percent",
    # To the baseline of the loss: (binary) cross entropy, or smooth L1 for GHM-R. On the CPU the median over the
    # repetitions of the ratio in the same round, on a GPU the ratio of the medians
    "ratio",
    "ratio_p20",
    "ratio_p80",
    "peak_extra_bytes",
    "launches",  # kernels, copies and fills on the device; for "host" the Triton kernels, which are left out
    "host_syncs",
    "loss_error",  # relative
    "gradient_error",
]
ORIGIN = ["platform", "python", "torch", "triton", "ghm_triton", "commit"]
COLUMNS = [*KEY, *VALUES, *ORIGIN, "measured_at"]
