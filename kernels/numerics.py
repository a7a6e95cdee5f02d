"""Scalar functions of the loss kernels: fp32, with the same bits on every device, without special function units.

    exp_nonpositive(x) = exp(x),       x <= 0         relative error below 2e-7; 1 at 0, and 0 below -88
    log1p_unit(e)      = log(1 + e),   0 <= e <= 1    relative error below 2e-7
    log_from_1(u)      = log(u),       1 <= u         relative error below 2e-7
    add_log1p_small(s, e) = s + log(1 + e), 0 <= e <= 1/28, the logarithm with a relative error below 2e-7
    reciprocal(1 + e)  = 1 / (1 + e),  0 <= e <= 1    relative error below 2e-7; 1/2 at 1
    reciprocal_small(e) = 1 / (1 + e), 0 <= e <= 1/28 relative error below 2e-7

The hardware's exp2 is not used: rounding x * log2(e) alone costs 1e-6 of the result at x = -20, where easy
negatives lie. Two modules take `tl.exp2` all the same, and the last bits of their results are those of the device:
cross_entropy.py, where x is z - max, so that the error is below 2e-7 of the largest term of a row, and harmonize.py,
which needs it once per region. The hardware's division spends half its instructions on a range that 1 + e does not
have. The coefficients are minimax fits (Remez exchange, 40 digits) that keep the values at 0 exact.
"""

import triton
import triton.language as tl

from ..interpreter import interpreting

INTERPRETED = tl.constexpr(interpreting())  # as the kernels below are decorated


@triton.jit
def exp_nonpositive(x):
    """exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln(2) / 2. NaN gives an arbitrary number."""
    x = tl.maximum(x, -150.0)
    shifted = x * 1.4426950408889634 + 12582912.0  # 1.5 * 2^23: the low bits now hold the integer n
    n = shifted - 12582912.0
    r = x - n * 0.693145751953125  # ln 2 in two parts; the first has 16 bits, so n times it is exact
    r = r - n * 1.4286068203094172e-06
    p = 0.0082903149146901 * r + 0.041897929354636
    p = p * r + 0.16667636194322
    p = p * r + 0.4999914953028
    p = p * r + 0.9999997071875
    p = p * r + 1.0
    bits = p.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return tl.maximum(bits, 0).to(tl.float32, bitcast=True)  # a negative exponent field has underflowed to 0


@triton.jit
def log1p_unit(e):
    """log(1 + e) = e * P(e): the factor e keeps the relative accuracy for e near 0."""
    p = 0.0052534578529803 * e - 0.029792031272314
    p = p * e + 0.079081960905066
    p = p * e - 0.13775134789529
    p = p * e + 0.19180978386569
    p = p * e - 0.24869207442011
    p = p * e + 0.33323519531025
    p = p * e - 0.49999776378632
    return (p * e + 1.0) * e


@triton.jit
def log_from_1(u):
    """log(u) = n * ln 2 + log(m), u = 2^n * m, 1 <= m < 2, for u >= 1; NaN for 0 and NaN."""
    bits = u.to(tl.int32, bitcast=True)
    n = (bits >> 23) - 127
    m = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    log = n.to(tl.float32) * 0.6931471805599453 + log1p_unit(m - 1.0)
    return tl.where(u > 0, log, float("nan"))


@triton.jit
def add_log1p_small(total, e):
    """Add log(1 + e) to total for easy negatives of 29 or more regions, whose e = g / (1 - g) is at most 1/28.

    One fma: the compiler would move the addition behind the branch of the easy tiles, away from the multiplication.
    """
    p = 0.33304634370947 - 0.23629057944963 * e
    p = p * e - 0.49999838919436
    return tl.fma(p * e + 1.0, e, total)


@triton.jit
def reciprocal(u):
    """1 / u for u in [1, 2]: a parabola in u - 1 and two Newton steps."""
    e = u - 1.0
    r = (0.32323232323232 * e - 0.80808080808081) * e + 0.98989898989899
    r = r + r * (1.0 - u * r)
    return r + r * (1.0 - u * r)


@triton.jit
def reciprocal_small(e):
    """1 / (1 + e) for the easy negatives of 29 or more regions."""
    p = 0.99858035583978 - 0.93200833211713 * e
    p = p * e - 0.99999203937854
    return p * e + 1.0


@triton.jit
def sigmoid_pair(x):
    """(p, 1 - p, softplus(-|x|)) for p = sigmoid(x), each with full relative accuracy. NaN stays NaN."""
    e = exp_nonpositive(-tl.abs(x))
    e = tl.where(x == x, e, x)
    larger = reciprocal(1.0 + e)
    smaller = e * larger
    p = tl.where(x >= 0, larger, smaller)
    q = tl.where(x >= 0, smaller, larger)
    return p, q, log1p_unit(e)


@triton.jit
def negative_terms(x):
    """(CE(x, 0), its derivative p) = (softplus(x), sigmoid(x)). For NaN the loss is NaN and p some number."""
    e = exp_nonpositive(-tl.abs(x))
    larger = reciprocal(1.0 + e)
    p = tl.where(x >= 0, larger, e * larger)
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + log1p_unit(e), p


@triton.jit
def cross_entropy_terms(x, t):
    """(CE(x, t), d CE / d x) with CE = t * softplus(-x) + (1 - t) * softplus(x) and d CE / d x = sigmoid(x) - t.

    The residual is formed as (1 - t) * p - t * (1 - p), which does not cancel for t = 1.
    """
    p, q, tail = sigmoid_pair(x)
    slope = tl.where(x >= 0, 1.0 - t, -t)
    linear = tl.where(slope == 0, 0.0, slope * x)  # an infinite logit on the right side costs nothing
    return linear + tail, (1.0 - t) * p - t * q


@triton.jit
def asl1_terms(d, mu, mu_squared):
    """(ASL1(d), d ASL1 / d d) with ASL1 = d^2 / (sqrt(d^2 + mu^2) + mu) and derivative d / sqrt(d^2 + mu^2)."""
    size = tl.abs(d)
    huge = size > 1e15  # d^2 would overflow; sqrt(d^2 + mu^2) is |d| here
    bounded = tl.where(huge, 1.0, d)
    square = bounded * bounded
    root = tl.sqrt_rn(square + mu_squared)
    loss = tl.where(huge, size - mu, square / (root + mu))
    slope = tl.where(huge, tl.where(d > 0, 1.0, -1.0), tl.div_rn(bounded, tl.maximum(root, 1e-37)))
    return loss, slope


@triton.jit
def unit_region(g, BINS: tl.constexpr, AT_EDGES: tl.constexpr):
    """Find the last i in 0..BINS-1 with g >= fp32(i / BINS), for g in [0, 1]. NaN gives any region.

    AT_EDGES: for a few BINS floor(g * BINS) is one off for a g next to an edge (`floor_misses_edges`); compare there.
    """
    if INTERPRETED:
        g = tl.where(g == g, g, 0.0)  # the minimum below drops NaN on GPUs, but not in Triton 3.2's interpreter
    region = tl.minimum(g * BINS, BINS - 1.0).to(tl.int32)
    if AT_EDGES:
        region = tl.where(g < tl.div_rn(region.to(tl.float32), BINS * 1.0), region - 1, region)
        above = tl.div_rn((region + 1).to(tl.float32), BINS * 1.0)
        region = tl.where((g >= above) & (region < BINS - 1), region + 1, region)
    return region
