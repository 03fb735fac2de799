"""How far a kernel may round on any processor: what tests compare with its naive twin by.

A bound that was measured holds for the processor that it was measured on. These are proven: γ_n = n·u/(1 − n·u) holds
for n roundings one after the other, so for a sum of n terms in whatever order, on vectors of whatever width, and fused
with the products before it or not (Higham, Accuracy and Stability of Numerical Algorithms, 3.1 and 4.2).
"""

from __future__ import annotations

import math

import numpy as np

from quests_md.kernels import _simd_sum

WIDE = np.longdouble  # what naive twins add up in; on some processors it is double precision

# exp(x) as 128 equal factors. Horner's rule rounds the polynomial by at most 3.1 u (|x/128| < 0.47), the seven
# squarings by 127 u, and they multiply what was wrong before by 128: 524 u in all. The kernel says 1e-13.
EXP_NEGATIVE = 1e-13


def unit(dtype):
    """Return u, the rounding of a number near 1."""
    return 0.5 * float(np.finfo(dtype).eps)


def gamma(n, dtype):
    """Return γ_n of a kernel in this precision, and of its twin, which rounds as often in its own."""
    return sum(n * u / (1.0 - n * u) for u in (unit(dtype), unit(WIDE)))


def power_of_two(dtype):
    """Return the relative error of 2^x by vector code, where x is exact.

    That of the polynomial, and its rounding. Horner's rule rounds c_k f^k at most 2k + 1 times, |f| ≤ ½, and c_k
    itself once: Σ (2k + 2)·(f ln 2)^k/k! < 2.9 of at least 2^−½.
    """
    return _simd_sum.EXP2_ERROR["float" if dtype == np.float32 else "double"] + 4.1 * unit(dtype)


def of_exponents(off, dtype):
    """Return the relative error of 2^x where x is off by `off`·u; where it is off by 1 or more, of nothing."""
    return np.expm1(math.log(2.0) * np.minimum(1.0, unit(dtype) * np.asarray(off, WIDE)))


def promised(dH):
    """Return what double precision promises of dH, and of the mean of such values: 1e-10·max(1, |dH|).

    Two ways to the same value agree within it as well: the terms of either are off by 7e-12 at most (`blocks`, where
    products are allowed for), and what is left out of a sum is 1e-12 of it.
    """
    return 1e-10 * np.maximum(1.0, np.abs(dH))


def assert_promised(actual, expected):
    """Check that two ways to the same values of dH, or to entropies, agree."""
    off = np.abs(np.asarray(actual) - expected)
    assert np.all(off <= promised(expected)), f"off by up to {np.max(off)}"
