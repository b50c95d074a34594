"""A head in two shards, in two processes, against the whole head in one."""

import torch
import torch.multiprocessing as mp

from kernels_support import error, oracle
from kernels_worker import OPTIONS, shards, work


def test_two_shards_are_the_whole(tmp_path):
    places = [str(tmp_path / f"{rank}.pt") for rank in range(2)]
    mp.spawn(work, args=(str(tmp_path / "meeting"), places), nprocs=2)
    wanted_logp, (of_hidden, of_weight, of_bias) = oracle(shards(), **OPTIONS)
    parts = [torch.load(place) for place in places]
    for logp, gradients, empty, zeros in parts:
        assert error(logp, wanted_logp) < 1e-12
        assert error(gradients[0], of_hidden) < 1e-12
        assert bool((empty == 0).all())
        assert all(bool((zero == 0).all()) for zero in zeros)
    assert torch.equal(parts[0][0], parts[1][0])
    assert error(torch.cat([part[1][1] for part in parts]), of_weight) < 1e-12
    assert error(torch.cat([part[1][2] for part in parts]), of_bias) < 1e-12
