"""The grids of the transfer paper (arXiv 2011.13377, app. A.2)."""

from __future__ import annotations

from collections.abc import Sequence


def weight_decays(start: float = -6, stop: float = 5, count: int = 45) -> list[float]:
    """Return `count` penalties of logistic regression, 10**start to 10**stop, weakest first.

    scikit-learn's C is 1 / weight decay.
    """
    if count == 1:
        return [10.0**start]
    return [10.0 ** (start + (stop - start) * i / (count - 1)) for i in range(count)]


def finetune_pairs(
    learning_rates: Sequence[float] = (-4, -1, 4), base_decays: Sequence[float] = (-6, -3, 4)
) -> list[tuple[float, float]]:
    """Return the (learning rate, weight decay) pairs of finetuning, largest rate first.

    Parameters
    ----------
    learning_rates, base_decays : (start, stop, count)
        Decimal exponents. No decay is tried too; a decay is the base divided by the learning rate.
    """
    rates = weight_decays(learning_rates[0], learning_rates[1], int(learning_rates[2]))[::-1]
    bases = [0.0, *weight_decays(base_decays[0], base_decays[1], int(base_decays[2]))]
    return divided_pairs(rates, bases)


def divided_pairs(
    rates: Sequence[float], base_decays: Sequence[float]
) -> list[tuple[float, float]]:
    """Return each (learning rate, base decay / learning rate), the decays in the inner loop."""
    return [(rate, base / rate) for rate in rates for base in base_decays]
