"""Which rows count and what does not fit, in Triton's interpreter."""

import pytest
import torch

from triton_worker import interpreted

VOCAB = 50
BOUNDS = torch.tensor([0, 700, 700, 2050])


def checked(target, bounds=None, index=None, *, ignored=-100):
    """([N] counted, (targets fit, layout fits))."""
    counted, fits = interpreted(
        "triton_rows.checked_rows", target, ignored, VOCAB, bounds, index, 3
    )
    return counted, tuple(fits.tolist())


@pytest.mark.parametrize("ignored", [-100, 7])
def test_rows_count_unless_they_are_ignored(ignored):
    target = torch.randint(VOCAB, (2050,))
    target[::3] = ignored
    counted, fits = checked(target, ignored=ignored)
    assert torch.equal(counted, target != ignored)
    assert fits == (True, True)


@pytest.mark.parametrize("wrong", [-1, VOCAB, -101])
def test_a_target_out_of_range_is_seen(wrong):
    target = torch.zeros(2050, dtype=torch.int64)
    target[2040] = wrong
    assert checked(target, BOUNDS)[1] == (False, True)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bounds_that_do_not_rise_from_0_to_the_number_of_rows_are_seen(place, dtype):
    target = torch.zeros(2050, dtype=torch.int64)
    bounds = BOUNDS.clone().to(dtype)
    assert checked(target, bounds)[1] == (True, True)
    bounds[place] = -1 if place < 2 else 5000 if place == 3 else 699
    assert checked(target, bounds)[1] == (True, False)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_an_answer_that_is_not_there_is_seen(wrong):
    target, index = torch.zeros(2050, dtype=torch.int64), torch.tensor([[0, 1], [2, 0]])
    assert checked(target, BOUNDS, index)[1] == (True, True)
    index[1, 1] = wrong
    assert checked(target, None, index)[1] == (True, False)
