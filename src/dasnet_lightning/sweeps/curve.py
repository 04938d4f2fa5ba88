"""Learning curve over the number of masks: a saturation curve with its uncertainty, and predictions from it.

The curve is y(n) = ceiling - gain * n^-rate, the power law that learning curves follow in practice. With three to six
budgets its parameters are not determined, so that all of them on a grid are kept with their weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float64

RATES = np.geomspace(0.1, 2.0, 41)
CEILINGS = np.linspace(0.0, 1.0, 201)
LEAST_NOISE = 0.004  # standard deviation of one training; a few seeds can agree by chance
COVERAGE = 0.9
QUANTILES = 4001  # draws of a prediction


@dataclass(frozen=True)
class Interval:
    """A predicted value and the ends of its interval of 90 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """Weighted saturation curves.

    Attributes:
        ceilings: value at infinitely many masks, one for each curve.
        gains: what is missing to it at one mask.
        rates: exponent of the approach.
        weights: probabilities of the curves, of sum 1.
        noise: standard deviation of the value of one training.
    """

    ceilings: Float64[np.ndarray, " k"]
    gains: Float64[np.ndarray, " k"]
    rates: Float64[np.ndarray, " k"]
    weights: Float64[np.ndarray, " k"]
    noise: float

    def means(self, masks: float) -> Float64[np.ndarray, " k"]:
        """Return the value of each curve at a number of masks."""
        values: Float64[np.ndarray, " k"] = self.ceilings - self.gains * masks**-self.rates
        return values

    def predict(self, masks: float, seeds: int = 1) -> Interval:
        """Predict the mean of `seeds` trainings with a number of masks."""
        return self._interval(self.means(masks), self.noise / seeds**0.5)

    def predict_gain(self, masks: float) -> Interval:
        """Predict what twice as many masks add, without the noise of a training."""
        return self._interval(self.means(2 * masks) - self.means(masks), 0.0)

    def _interval(self, values: Float64[np.ndarray, " k"], noise: float) -> Interval:
        """Return mean and quantiles of a mixture of normal distributions around the values."""
        rng = np.random.default_rng(0)
        draws = rng.choice(values, QUANTILES, p=self.weights) + rng.normal(0, 1, QUANTILES) * noise
        low, high = np.quantile(draws, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        return Interval(float(self.weights @ values), float(low), float(high))


def fit_curve(masks: Sequence[float], values: Sequence[float], widen: float = 1.0) -> LearningCurve:
    """Fit a learning curve to trainings.

    Args:
        masks: number of masks of each training, at least 1. Several trainings, with different seeds, may have the same.
        values: the metric of each, 0..1.
        widen: factor of the noise, for wider intervals.

    Raises:
        ValueError: there are less than two different numbers of masks.
    """
    x, y = np.asarray(masks, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(np.unique(x)) < 2:
        raise ValueError(f"a learning curve needs two different numbers of masks, given: {sorted(set(masks))}")
    noise = widen * _noise(x, y)
    rates, ceilings = (grid.ravel() for grid in np.meshgrid(RATES, CEILINGS))
    basis = x[None] ** -rates[:, None]  # curves x trainings
    # the gain with the smallest squared error, which has a closed form and is never negative
    gains = np.maximum(((ceilings[:, None] - y[None]) * basis).sum(1) / (basis**2).sum(1), 0)
    residuals = y[None] - (ceilings[:, None] - gains[:, None] * basis)
    log_weights = -0.5 * (residuals**2).sum(1) / noise**2
    weights = np.exp(log_weights - log_weights.max())
    kept = weights > 1e-9
    return LearningCurve(ceilings[kept], gains[kept], rates[kept], weights[kept] / weights[kept].sum(), noise)


def _noise(x: Float64[np.ndarray, " t"], y: Float64[np.ndarray, " t"]) -> float:
    """Return the pooled standard deviation of trainings with equally many masks, at least LEAST_NOISE."""
    groups = [y[x == number] for number in np.unique(x)]
    freedom = sum(len(group) - 1 for group in groups)
    pooled = sum(((group - group.mean()) ** 2).sum() for group in groups)
    return max(LEAST_NOISE, float((pooled / freedom) ** 0.5)) if freedom else 2 * LEAST_NOISE


def worth_drawing(curve: LearningCurve, measured: Sequence[int], least_gain: float) -> int:
    """Return after how many masks another doubling gains less than `least_gain`; at least the smallest measured number.

    The numbers that are tried are those of the measured budgets and their doublings, up to 64 times the largest.
    """
    budgets = sorted(set(measured))
    budgets += [budgets[-1] * 2**power for power in range(1, 7)]
    for number in budgets:
        if curve.predict_gain(number).value < least_gain:
            return number
    return budgets[-1]


def masks_needed(masks: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """Return the number of masks at which a measured curve reaches a value, interpolated in log(masks).

    Args:
        masks: numbers of masks, ascending.
        values: the metric at each.
        target: the value to reach.

    Returns:
        None if the curve does not reach the target; the first number if it starts above it.
    """
    if values[0] >= target:
        return float(masks[0])
    for (before, low), (after, high) in pairwise(zip(masks, values, strict=True)):
        if low < target <= high:
            share = (target - low) / (high - low)
            return float(np.exp(np.log(before) + share * (np.log(after) - np.log(before))))
    return None
