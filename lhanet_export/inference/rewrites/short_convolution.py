"""Short convolution algorithms: several samples of a correlation from fewer products than taps times samples.

To correlate data with t taps at m neighbouring places takes m * t products the direct way. The product of
two polynomials of m and t coefficients is known from its residues modulo m + t - 1 distinct linear factors,
each of which costs one product (Toom-Cook); a residue modulo a quadratic costs three and brings two
(Karatsuba). Transposing the algorithm turns the product of polynomials into a correlation. In matrices:

    samples = inverse @ ((kernel @ taps) * (data @ window))

Source: S. Winograd, Arithmetic Complexity of Computations, SIAM 1980, chapters 3 to 5 (Chinese remainder theorem
for polynomials, transposition). Exact in exact arithmetic for every window and every taps. What rounding does
depends on the factors: linear factors alone would amplify it by 24 for 7 taps and 6 samples; with the
quadratics chosen below it is 2.5 (7 taps) and 2.8 (5 taps), little enough for FP16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Which residues an algorithm takes: modulo x - point, modulo x^2 + b x + 1, and at infinity."""

    points: tuple[float, ...]
    quadratics: tuple[float, ...]

    @property
    def degree(self) -> int:
        """How many coefficients of a product they determine, infinity included."""
        return len(self.points) + 2 * len(self.quadratics) + 1


#: By number of taps. Six samples at a time: of all sets with factors from {0, 1, -1, 1/2, -1/2, 2, -2} and b from
#: {0, +-1/2, +-1, +-3/2} these need the fewest products (11 for 30, 14 for 42) at an amplification below 3.
FACTORS = {
    5: Factors(points=(0, 1, -1, 0.5, -0.5, 2, -2), quadratics=(0,)),
    7: Factors(points=(0, 1, -1, 0.5, -0.5, 2, -2), quadratics=(-1, 0.5)),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ShortConvolution:
    """The three matrices, float64: `inverse` (samples, products), `kernel` (products, taps), `data` (products, window).

    Rows of `data` have norm 1, so that what is multiplied has the size of what was given.
    """

    inverse: np.ndarray
    kernel: np.ndarray
    data: np.ndarray

    @property
    def samples(self) -> int:
        """How many neighbouring samples one application gives."""
        return self.inverse.shape[0]

    @property
    def products(self) -> int:
        """How many products it takes for them."""
        return self.inverse.shape[1]

    @property
    def taps(self) -> int:
        """How many taps the correlation has."""
        return self.kernel.shape[1]

    @property
    def amplification(self) -> float:
        """How much larger the rounding error is than that of a direct correlation, for white data and taps."""
        squares = (self.kernel**2).sum(1) * (self.data**2).sum(1) / self.taps
        return float(np.sqrt((self.inverse**2 @ squares).mean()))


def short_convolution(taps: int) -> ShortConvolution:
    """The algorithm for correlations with `taps` taps; `ValueError` for a number that `FACTORS` does not have."""
    if taps not in FACTORS:
        raise ValueError(f"there is no short convolution for {taps} taps; there is one for {sorted(FACTORS)}")
    factors = FACTORS[taps]
    window = factors.degree
    samples = window - taps + 1
    products_to_residues = _residues_of_products(factors)
    # Residues of the whole product, as a function of its coefficients; square because the degrees match.
    coefficients_to_residues = _residues(factors, window)
    data = np.linalg.solve(coefficients_to_residues, products_to_residues).T
    norms = np.linalg.norm(data, axis=1, keepdims=True)
    return ShortConvolution(
        inverse=_evaluations(factors, samples).T, kernel=_evaluations(factors, taps) * norms, data=data / norms
    )


def _powers(point: float, count: int) -> list[float]:
    return [point**power for power in range(count)]


def _modulo_quadratic(b: float, count: int) -> np.ndarray:
    """Matrix (2, count): from a polynomial's coefficients to its residue modulo x^2 + b x + 1."""
    columns = [np.array([1.0, 0.0])]
    while len(columns) < count:
        constant, linear = columns[-1]
        columns.append(np.array([-linear, constant - b * linear]))
    return np.stack(columns, axis=1)


def _infinity(count: int) -> np.ndarray:
    """The leading coefficient."""
    return np.eye(1, count, count - 1)


def _residues(factors: Factors, count: int) -> np.ndarray:
    rows = [np.array([_powers(point, count)]) for point in factors.points]
    rows += [_modulo_quadratic(b, count) for b in factors.quadratics]
    return np.concatenate([*rows, _infinity(count)])


def _evaluations(factors: Factors, count: int) -> np.ndarray:
    """What is multiplied: residues, and for each quadratic also the sum of its two (Karatsuba)."""
    rows = [np.array([_powers(point, count)]) for point in factors.points]
    for b in factors.quadratics:
        residue = _modulo_quadratic(b, count)
        rows += [residue, residue.sum(0, keepdims=True)]
    return np.concatenate([*rows, _infinity(count)])


def _residues_of_products(factors: Factors) -> np.ndarray:
    """From the products to the residues of the product polynomial.

    (u0 + u1 x)(v0 + v1 x) = u0 v0 + ((u0 + u1)(v0 + v1) - u0 v0 - u1 v1) x + u1 v1 x^2, and x^2 = -b x - 1.
    """
    blocks = [np.ones((1, 1)) for _ in factors.points]
    blocks += [np.array([[1, -1, 0], [-1, -1 - b, 1]]) for b in factors.quadratics]
    blocks.append(np.ones((1, 1)))
    result = np.zeros((sum(len(block) for block in blocks), sum(block.shape[1] for block in blocks)))
    row = column = 0
    for block in blocks:
        result[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return result
