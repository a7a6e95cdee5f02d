"""Tolerances against float64 references, each with its reason, and the comparison that uses them."""

import torch

# Relative errors in float32 against float64 with the same regions: what the documentation states.
LOSS = 1e-6
GRADIENT = 2e-6
# A 16-bit number has 11 (float16) or 8 (bfloat16) significant bits: rounding to nearest errs by at most half a step,
# 2^-11 or 2^-8 of the number, and below the normal range by half the smallest step. Below 1e-38 float32 has no full
# precision.
ROUNDING = {torch.float32: 0.0, torch.float64: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}
SMALLEST = {torch.float32: 1e-38, torch.float64: 1e-38, torch.float16: 2**-25, torch.bfloat16: 1e-38}
SIGMOID = 4 * 2**-24  # the error of p - t where it cancels, as for soft targets: a few units of p and of t


def assert_close(actual, expected, relative, absolute=0.0):
    """|actual - expected| <= relative * |expected| + absolute for each element; NaN fails."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    error = (actual - expected).abs()
    bad = ~(error <= relative * expected.abs() + absolute)
    assert not bad.any(), f"{int(bad.sum())} of {bad.numel()}: {actual[bad][:3]} instead of {expected[bad][:3]}"
