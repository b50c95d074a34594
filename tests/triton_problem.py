"""Heads to test kernels with, their truth in float64, and what plain PyTorch makes of them."""

from dataclasses import dataclass, field, replace
from unittest import mock

import torch

from mmrlhf_kernels import reference
from mmrlhf_kernels.backend import Block, HeadOptions

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Problem:
    """Operands of a head."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    target: torch.Tensor
    options: HeadOptions = field(default_factory=HeadOptions)

    @property
    def block(self):
        """The operands as the backend takes them."""
        return Block(self.hidden, self.weight, self.bias, self.target, self.options)

    @property
    def kept(self):
        """Rows whose target lies in the vocabulary."""
        return (self.target >= 0) & (self.target < self.weight.shape[0])

    def to(self, *args):
        """The same head in another dtype or on another device; targets keep their dtype."""
        floats = (self.hidden, self.weight, self.bias)
        moved = (None if x is None else x.to(*args) for x in floats)
        device = args[0] if isinstance(args[0], str) else self.target.device
        hidden, weight, bias = moved
        return replace(self, hidden=hidden, weight=weight, bias=bias, target=self.target.to(device))

    def logits(self):
        """z [N, V] by the specification, in the dtype of the operands."""
        cap, scale = self.options
        return reference.logits(
            self.hidden, self.weight, bias=self.bias, softcap=cap, logit_scale=scale
        )

    def logp(self, z):
        """log softmax(z)[target], 0 for rows without one."""
        chosen = z.log_softmax(1).gather(1, self.target.where(self.kept, 0)[:, None])[:, 0]
        return chosen.where(self.kept, 0.0)

    def gradient(self, grad):
        """E [N, V] by autograd, in the dtype of the operands."""
        raw = reference.logits(self.hidden, self.weight, bias=self.bias).requires_grad_()
        cap, scale = self.options
        z = raw * scale if cap is None else cap * torch.tanh(raw * scale / cap)
        (self.logp(z) * grad.to(z.dtype)).sum().backward()
        return raw.grad


def problem(rows, inner, columns, dtype, *, bias=False, cap=None, scale=1.0, spread=1.0, seed=0):
    """A random head; every fifth row is ignored where there are more than four."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    target = torch.randint(0, columns, (rows,), generator=generator)
    target[4::5] = -100
    return Problem(
        (random(rows, inner) * spread).to(dtype),
        (random(columns, inner) / inner**0.5).to(dtype),
        random(columns).to(dtype) if bias else None,
        target,
        HeadOptions(cap, scale),
    )


def error(found, truth):
    """The largest absolute difference."""
    return (found.double() - truth).abs().max().item() if truth.numel() else 0.0


def hold_to_plain(found, plain, truth, *, lse=None):
    """At most twice the error that plain PyTorch makes in the same dtype.

    Where PyTorch happens to be exact, two units in the last place of float32 are allowed; where a
    probability is taken from a float32 normaliser, also what rounding that one costs.
    """
    unit = torch.finfo(torch.float32).eps
    largest = truth.abs().max().item()
    floor = 2 * unit * max(1.0, largest)
    if lse is not None:
        floor += unit * lse.abs().max().item() * largest
    assert error(found, truth) <= 2 * error(plain, truth) + floor


def nearly_equal(found, other):
    """Equal but for the last place: the order of a sum hangs on processor and shape."""
    step = torch.finfo(found.dtype).eps
    assert torch.allclose(found, other, rtol=step, atol=4 * torch.finfo(torch.float32).eps)


def logp_and_gradients(p, grad, **options):
    """(logp, d hidden, d weight) of the package's primitive, by the implementation in force."""
    from mmrlhf_kernels import fused_linear_logp

    hidden = p.hidden.detach().requires_grad_()
    weight = p.weight.detach().requires_grad_(options.get("schedule") != "frozen")
    cap, scale = p.options
    logp = fused_linear_logp(
        hidden, weight, p.target, bias=p.bias, softcap=cap, logit_scale=scale, **options
    )
    logp.backward(grad)
    return logp.detach(), hidden.grad, weight.grad


def lora_and_widths(p, lora, grad):
    """(logp, gradients of hidden, A and B, set of H + r that kernels met) with LoRA on the head."""
    from mmrlhf_kernels import fused_linear_logp
    from mmrlhf_kernels.triton_tile import Launch

    widths, run = set(), Launch.run

    def recorded(launch):
        head = launch.arguments.get("head")
        widths.add(None if head is None else head.inner)
        run(launch)

    leaves = [t.detach().requires_grad_() for t in (p.hidden, *lora[:2])]
    with mock.patch.object(Launch, "run", recorded):
        logp = fused_linear_logp(leaves[0], p.weight, p.target, lora=(*leaves[1:], lora[2]))
        logp.backward(grad)
    return logp.detach(), [leaf.grad for leaf in leaves], widths - {None, 0}
