"""The expected error of projecting a Gaussian matrix, in closed form. Pure.

All are relative Frobenius errors ‖W − Ŵ‖ / ‖W‖ of the nearest member of a format to a matrix of
independent standard normal entries, as its size grows; ``eckart_young`` holds for any matrix.
scipy is imported when a value is first asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def unstructured(density: float) -> float:
    """The largest magnitudes kept, whatever their place (coo, csr, masked_dense).

    The error is sqrt(1 − density − 2 t φ(t)) with t the magnitude that ``density`` exceeds.

    Raises:
        ValueError: the density is not within 0 and 1.
    """
    from scipy.special import ndtri

    if not 0 <= density <= 1:
        raise ValueError(f"A density lies between 0 and 1, not at {density}.")
    if density in (0, 1):
        return 1.0 - density
    t = -float(ndtri(density / 2))
    energy = density + 2 * t * math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(max(0.0, 1 - energy))


def n_of_m(n: int, m: int) -> float:
    """The ``n`` largest magnitudes of every ``m`` neighbours kept; 2:4 is ``n_of_m(2, 4)``.

    The error squared is the part of the energy below the n-th largest of m half-normal values.

    Raises:
        ValueError: not 1 ≤ n ≤ m.
    """
    from scipy.integrate import quad

    if not 1 <= n <= m:
        raise ValueError(f"n:m keeps between 1 and m of every m, not {n} of {m}.")

    def dropped(t: float) -> float:
        below = math.erf(t / math.sqrt(2))  # of the others, each
        chance = sum(
            math.comb(m - 1, k) * below**k * (1 - below) ** (m - 1 - k) for k in range(m - n)
        )
        return t * t * math.sqrt(2 / math.pi) * math.exp(-t * t / 2) * chance

    return math.sqrt(quad(dropped, 0, 40, epsabs=1e-12, limit=200)[0])


def low_rank(rows: int, columns: int, rank: int) -> float:
    """The best approximation of that rank (Eckart–Young over the Marčenko–Pastur law).

    Raises:
        ValueError: the rank is not within 0 and the smaller side.
    """
    from scipy.integrate import quad
    from scipy.optimize import brentq

    short, long = min(rows, columns), max(rows, columns)
    if not 0 <= rank <= short:
        raise ValueError(f"A rank lies between 0 and {short}, not at {rank}.")
    if rank in (0, short):
        return 1.0 if rank == 0 else 0.0
    aspect = short / long

    # Squared singular values over ``long`` are 1 + c + 2 √c cos θ with density 2 sin²θ / (π value).
    def density(angle: float) -> float:
        value = 1 + aspect + 2 * math.sqrt(aspect) * math.cos(angle)
        return 2 * math.sin(angle) ** 2 / (math.pi * value)

    def missing(angle: float) -> float:
        return quad(density, angle, math.pi, limit=200)[0] - (1 - rank / short)

    cut = float(brentq(missing, 0.0, math.pi, xtol=1e-12))
    return math.sqrt(((math.pi - cut) + math.sin(2 * cut) / 2) / math.pi)


def eckart_young(singular_values: Sequence[float], rank: int) -> float:
    """The error of the best approximation of that rank to a matrix of these singular values."""
    squares = sorted((value * value for value in singular_values), reverse=True)
    return math.sqrt(math.fsum(squares[rank:]) / math.fsum(squares))
