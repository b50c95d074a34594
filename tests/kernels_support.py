"""What the tests of the kernels share: cases, the float64 oracle, a count of live bytes."""

import contextlib
import copy
import io
import weakref
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmrlhf_kernels import fused_linear_logp, fused_linear_mm_dpo, reference
from mmrlhf_kernels.rows import Rows


class HeadCase(NamedTuple):
    """Inputs of one call of the primitive."""

    hidden: Tensor
    weight: Tensor
    target: Tensor
    bias: Tensor | None
    grad: Tensor

    def leaves(self, *, frozen=False):
        """The tensors that take a gradient, hidden states first."""
        head = [] if frozen else [self.weight, self.bias]
        return [t for t in [self.hidden, *head] if t is not None]

    def double(self):
        """The same numbers in float64, as fresh leaves."""
        return HeadCase(
            *(
                None
                if t is None
                else t.detach().double().requires_grad_()
                if t.is_floating_point()
                else t
                for t in self
            )
        )


def head_case(rows, hidden, vocab, *, dtype=torch.float64, bias=False, seed=0, spread=1.0):
    """Random inputs; ``spread`` sets how peaked the distributions are."""
    source = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    states = (draw(rows, hidden) * spread).to(dtype).requires_grad_()
    weight = (draw(vocab, hidden) / hidden**0.5).to(dtype).requires_grad_()
    offset = draw(vocab).to(dtype).requires_grad_() if bias else None
    target = torch.randint(0, vocab, (rows,), generator=source)
    return HeadCase(states, weight, target, offset, draw(rows))


def oracle(case, *, frozen=False, **options):
    """(logp, gradients of the leaves) by plain autograd in float64."""
    exact = case.double()
    logp = reference.linear_logp(
        exact.hidden, exact.weight, exact.target, bias=exact.bias, **options
    )
    return logp.detach(), torch.autograd.grad(logp, exact.leaves(frozen=frozen), exact.grad)


def entropy_and_logp(case, **options):
    """Gradients of a loss with an entropy bonus."""
    result = fused_linear_logp(
        case.hidden, case.weight, case.target, bias=case.bias, return_entropy=True,
        entropy_gradient=True, workspace_bytes=1 << 12, **options,
    )  # fmt: skip
    loss = (result.logp * case.grad + 0.3 * result.entropy * case.grad.square()).sum()
    return result.entropy.detach(), torch.autograd.grad(loss, case.leaves())


# Answers of three pairs: an empty one, one of a single token, and longer ones.
LENGTHS = (3, 0, 9, 1, 4, 6)
HIDDEN, VOCAB = 7, 521
SMALL_VOCAB = 67
"""For the interpreter, whose time is the number of tiles of 32: three, the last one not full."""


def bounds_of(lengths):
    """The bounds [S + 1] of sequences of these lengths [S]."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


class Pairs:
    """Rows, reference sums and betas of as many pairs as there are half the lengths."""

    def __init__(self, lengths=LENGTHS, dtype=torch.float64, seed=0, vocab=VOCAB):
        source = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=source, dtype=torch.float64)

        self.lengths = torch.tensor(lengths)
        self.cu_seqlens = bounds_of(self.lengths)
        rows, pairs = sum(lengths), len(lengths) // 2
        self.hidden = draw(rows, HIDDEN).to(dtype).requires_grad_()
        self.weight = draw(vocab, HIDDEN).to(dtype).requires_grad_()
        self.bias = draw(vocab).to(dtype).requires_grad_()
        self.target = torch.randint(0, vocab, (rows,), generator=source)
        self.references = [-10 * draw(pairs).abs() for _ in range(2)]
        self.beta = 0.05 + draw(pairs).abs()
        self.pairs = pairs

    def leaves(self, schedule=None):
        return [self.hidden] if schedule == "frozen" else [self.hidden, self.weight, self.bias]

    def part(self, taken):
        """Some of the pairs: their rows as new leaves, head and columns shared or selected."""
        part = copy.copy(self)
        answers = [*taken, *(pair + self.pairs for pair in taken)]
        rows = [torch.arange(*self.cu_seqlens[answer : answer + 2].tolist()) for answer in answers]
        part.rows = torch.cat([torch.zeros(0, dtype=torch.int64), *rows])
        part.lengths = self.lengths[answers]
        part.cu_seqlens = bounds_of(part.lengths)
        part.hidden = self.hidden.detach()[part.rows].requires_grad_()
        part.target = self.target[part.rows]
        part.references = [column[taken] for column in self.references]
        part.beta = self.beta[taken]
        part.pairs = len(taken)
        return part

    def fused(self, schedule=None, *, index=None, **options):
        """(output, gradients of 2 L)."""
        frozen = schedule == "frozen"
        options.setdefault("cu_seqlens", self.cu_seqlens)
        out = fused_linear_mm_dpo(
            self.hidden,
            self.weight.detach() if frozen else self.weight,
            self.target,
            *self.references,
            self.beta,
            bias=self.bias.detach() if frozen else self.bias,
            schedule=schedule,
            pair_index=index,
            **options,
        )
        return out, torch.autograd.grad(2 * out.loss, self.leaves(schedule))

    def oracle(
        self, schedule=None, *, index=None, sft_weight=0.0, sft="token", num_pairs=None,
        num_tokens=None, **options,
    ):  # fmt: skip
        """(loss, gradients of 2 L) by plain autograd."""
        logp = reference.linear_logp(self.hidden, self.weight, self.target, bias=self.bias)
        parts = logp.split(self.lengths.tolist())
        sums = torch.stack([part.sum() for part in parts])
        counted = (self.target != -100).split(self.lengths.tolist())
        tokens = torch.tensor([int(part.sum()) for part in counted])
        if index is None:
            index = torch.arange(2 * self.pairs).view(2, self.pairs).T
        chosen, rejected = sums[index[:, 0]], sums[index[:, 1]]
        preference = reference.mm_dpo_loss(
            chosen - self.references[0], rejected - self.references[1], self.beta,
            num_pairs=num_pairs, **options,
        )  # fmt: skip
        supervised = reference.supervised_loss(
            chosen, tokens[index[:, 0]], sft, num_pairs=num_pairs, num_tokens=num_tokens
        )
        loss = preference + sft_weight * supervised
        return loss.detach(), torch.autograd.grad(2 * loss, self.leaves(schedule))


def error(found, wanted):
    """Largest error relative to the largest wanted value."""
    wanted = wanted.detach().double()
    if wanted.numel() == 0:
        return 0.0
    scale = max(float(wanted.abs().max()), 1e-30)
    return float((found.detach().double() - wanted).abs().max()) / scale


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that are made while the mode is on, and their peak."""

    def __init__(self):
        super().__init__()
        self.live = 0
        self.peak = 0
        self.known = set()

    def _forget(self, key, size):
        self.known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in before or key in self.known or size == 0:
                continue
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)
        return result


def compile_bench():
    """(exit code, stderr) of the bench that compiles kernels, in this process."""
    import kernel_compile

    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), mock.patch("sys.argv", ["kernel_compile", "--fast"]):
        return kernel_compile.main(), stderr.getvalue()


def bare_kernels():
    """The rows of the bench for GPUs about its kernels alone, on a small head and without times."""
    import gpu_kernels

    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 16, generator=draw).bfloat16() for size in (17, 64))
    target, grad = torch.randint(0, 64, (17,), generator=draw), torch.ones(17)
    operands, firsts = gpu_kernels.Operands(hidden, weight, target, grad), {}
    with mock.patch("gpu_kernels.median_ms", return_value=1.0):
        return [
            gpu_kernels.measure_bare(kernel, operands, firsts)
            for kernel in gpu_kernels.bare_kernels(operands, 32)
        ]


def loop_in_wide_tiles(steps):
    """The bare loop for the interpreter, whose time is the number of tiles."""
    from heads.training import bare_loop
    from mmrlhf_kernels.triton_settings import Settings, use_settings

    wide = Settings(rows=16, columns=128, inner=32, warps=1, stages=1, splits=2)
    with use_settings(sweep=wide, logit_gradient=wide):
        return bare_loop(steps)


def fused_with_masked_rows(pairs, schedule, **options):
    """``pairs.fused`` as on a GPU: ignored rows are masked, lengths are not known."""

    def rows_that_count(target, ignore_index, *_, **__):
        return Rows(None, target != ignore_index)

    with (
        mock.patch("mmrlhf_kernels.rows.rows_that_count", rows_that_count),
        mock.patch("mmrlhf_kernels.rows._layout", return_value=None),
    ):
        out, gradients = pairs.fused(schedule, **options)
    return out._replace(loss=out.loss.detach()), gradients
