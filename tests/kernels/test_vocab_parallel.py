"""A head in two shards, in two processes, against the whole head in one."""

import torch

from kernels_support import error, oracle
from kernels_worker import OPTIONS, make_case, run_rank
from triton_worker import start_interpreted


def test_two_shards_are_the_whole(tmp_path):
    store = str(tmp_path / "store")
    second = start_interpreted(run_rank, 1, store)
    try:
        first = run_rank(0, store)
    finally:
        parts = [second()]
    parts.insert(0, first)
    wanted_logp, (of_hidden, of_weight, of_bias) = oracle(make_case(), **OPTIONS)
    for logp, gradients, empty, zeros in parts:
        assert error(logp, wanted_logp) < 1e-12
        assert error(gradients[0], of_hidden) < 1e-12
        assert bool((empty == 0).all())
        assert all(bool((zero == 0).all()) for zero in zeros)
    assert torch.equal(parts[0][0], parts[1][0])
    assert error(torch.cat([part[1][1] for part in parts]), of_weight) < 1e-12
    assert error(torch.cat([part[1][2] for part in parts]), of_bias) < 1e-12
