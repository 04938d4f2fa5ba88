"""The learning curve: a known curve is found again, intervals hold what they say, and what follows from the curve."""

import numpy as np
import pytest

from dasnet_lightning.sweeps.cost import CostModel
from dasnet_lightning.sweeps.curve import fit_curve, masks_needed, worth_drawing
from dasnet_lightning.sweeps.page import WIDEN

MASKS = [15, 30, 80, 160, 400]


def known(masks: float) -> float:
    return 0.8 - 0.4 * masks**-0.5


def test_a_curve_without_noise_is_found_again():
    curve = fit_curve(np.repeat(MASKS, 3).tolist(), [known(number) for number in MASKS for _ in range(3)])
    assert curve.predict(1600).value == pytest.approx(known(1600), abs=0.01)
    assert curve.predict_gain(80).value == pytest.approx(known(160) - known(80), abs=0.004)


def test_an_interval_of_ninety_percent_holds_at_least_that_share():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        ceiling, gain, rate = rng.uniform(0.5, 0.95), rng.uniform(0.1, 0.5), rng.uniform(0.2, 1)
        noise = rng.uniform(0.003, 0.02)
        masks = np.repeat(MASKS, 3)
        values = ceiling - gain * masks**-rate + rng.normal(0, noise, len(masks))
        interval = fit_curve(masks.tolist(), values.tolist(), WIDEN).predict(1600, seeds=3)
        truth = ceiling - gain * 1600.0**-rate + rng.normal(0, noise / 3**0.5)
        inside += interval.low <= truth <= interval.high
    assert inside >= 0.85 * 60


def test_fewer_and_noisier_trainings_are_less_certain():
    exact = fit_curve(MASKS, [known(number) for number in MASKS]).predict(3200)
    noisy = fit_curve(MASKS, [known(number) for number in MASKS], widen=4.0).predict(3200)
    two = fit_curve(MASKS[:2], [known(number) for number in MASKS[:2]]).predict(3200)
    assert exact.high - exact.low < noisy.high - noisy.low
    assert exact.high - exact.low < two.high - two.low


def test_one_number_of_masks_is_no_curve():
    with pytest.raises(ValueError, match="two different numbers of masks"):
        fit_curve([15, 15, 15], [0.5, 0.51, 0.52])


def test_masks_are_worth_drawing_until_a_doubling_gains_too_little():
    curve = fit_curve(MASKS, [known(number) for number in MASKS])
    number = worth_drawing(curve, MASKS, least_gain=0.01)
    assert number in (160, 400)
    assert curve.predict_gain(number).value < 0.01 <= curve.predict_gain(80).value
    assert worth_drawing(curve, MASKS, least_gain=0.5) == 15


def test_the_masks_that_a_value_needs_are_interpolated_in_their_logarithm():
    assert masks_needed([10, 100], [0.5, 0.7], 0.6) == pytest.approx(31.6, abs=0.1)
    assert masks_needed([10, 100], [0.5, 0.7], 0.4) == 10
    assert masks_needed([10, 100], [0.5, 0.7], 0.8) is None


def test_costs_are_told_in_hours_or_in_their_unit():
    cost = CostModel()
    assert cost.total(1000, 50) == pytest.approx(1000 * 7 + 50 * 79.2)
    assert cost.describe(7200) == "2.0 h"
    assert cost.describe(600) == "10 min"
    assert CostModel(0.05, 1.2, "EUR").describe(1234) == "1,234 EUR"
