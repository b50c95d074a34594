"""Margins of rewards on a scale of their own, against numbers worked by hand."""

import numpy as np
import pytest

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.train.margins import normalised

NAN = float("nan")
MARGINS = np.array([1.0, -3.0, NAN, 5.0, 100.0, 1.0])
TIES = np.array([False, False, False, False, True, False])


def test_no_rule_changes_no_value():
    values, said = normalised(MARGINS, "none", TIES)
    assert values.dtype == np.float32
    assert said == {"rule": "none"}
    np.testing.assert_array_equal(values, MARGINS.astype(np.float32))


def test_std_divides_by_the_deviation_of_decided_pairs():
    # 1, -3, 5, 1: mean 1, squares of differences 0, 16, 16, 0; the tie of 100 is no part of it.
    values, said = normalised(MARGINS, "std", TIES)
    assert said == {"rule": "std", "pairs": 4, "standard_deviation": pytest.approx(8**0.5)}
    np.testing.assert_allclose(values, (MARGINS / 8**0.5).astype(np.float32))
    assert values.dtype == np.float32


def test_rank_is_the_quantile_of_the_size_with_the_sign():
    # Sizes of decided pairs: 1, 1, 3, 5. The tie of 100 is above them all.
    values, said = normalised(MARGINS, "rank", TIES)
    assert said == {"rule": "rank", "pairs": 4}
    np.testing.assert_array_equal(values, np.float32([0.5, -0.75, NAN, 1.0, 1.0, 0.5]))
    assert values.dtype == np.float32


def test_rank_of_what_is_below_every_decided_pair_is_zero():
    values, _ = normalised(np.array([2.0, 0.5, 0.0, -4.0]), "rank", np.array([0, 1, 1, 0], bool))
    np.testing.assert_array_equal(values, np.float32([0.5, 0.0, 0.0, -1.0]))


@pytest.mark.parametrize("rule", ["std", "rank"])
def test_no_decided_margin_is_refused(rule):
    with pytest.raises(InputError, match="no pair that is no tie has a margin"):
        normalised(np.array([NAN, 2.0]), rule, np.array([False, True]))


@pytest.mark.parametrize("margins", [[2.0], [0.25, 0.25, NAN]])
def test_equal_margins_have_no_deviation(margins):
    with pytest.raises(InputError, match=r"all [12] margins .* are (2|0\.25)"):
        normalised(np.array(margins), "std", np.zeros(len(margins), bool))


def test_a_single_margin_has_a_rank():
    values, _ = normalised(np.array([-2.0]), "rank", np.array([False]))
    np.testing.assert_array_equal(values, np.float32([-1.0]))
