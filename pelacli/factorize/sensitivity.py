"""What is propagated back through a model, so that gradients say what its output feels.

E[g gᵀ] of these gradients is JᵀFJ, where J is the Jacobian of the output and F what counts as a
change of it:

- A language model's output is a distribution of the next token. F is its Fisher matrix: the
  gradients are those of −log p of a token that is sampled from the model itself. To second order
  the damage is then the KL divergence of the two models' distributions.
- Of any other model F is the identity on its output, each entry divided by its standard deviation.
  The gradients are those of Σ ε·y for independent random signs ε.

Neither needs labels. Which of the two is taken is decided by one question: does the model say what
token comes next, as `pelacli.models.token_head` finds out?
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pelacli.factorize.symmetric import safe_scale, scaled

# What an artefact says its ranks were chosen by.
WEIGHTS, PROJECTIONS, SAMPLED_TOKENS = "weights", "projections", "sampled tokens"
# Tokens whose logits are there at once.
CHUNK = 256


class Head(Protocol):
    """A language model's output in two parts; see `pelacli.models.token_head`."""

    def hidden(self, inputs: Any) -> Tensor:
        """States [B, N, width] of a batch."""
        ...

    def logits(self, rows: Tensor) -> Tensor:
        """Logits [tokens, vocabulary] of states [tokens, width]."""
        ...


def projection(output: Tensor, generator: torch.Generator) -> Tensor:
    """Σ ε·y over the standardised output [..., D], with independent random signs ε."""
    flat = output.float().reshape(-1, output.shape[-1])
    flat = scaled(flat, safe_scale(flat.detach()))
    std = flat.detach().std(0, correction=0)
    # One sample has no spread, and a dead output tells nothing: both count as they are.
    std = torch.where(std > 1e-6 * flat.detach().abs().amax().clamp_min(1e-30), std, 1.0)
    signs = torch.randint(0, 2, flat.shape, generator=generator).to(flat) * 2 - 1
    return (flat / std * signs).sum()


def sampled_tokens(
    head: Head, states: Tensor, draws: int, generator: torch.Generator
) -> list[Tensor]:
    """Gradients of Σ −log p(a sampled token) with respect to the states, one for each draw.

    Layers inside the head get their gradients on the way. The logits are never there for more than
    `CHUNK` tokens.

    Args:
        states: [tokens, width].
        draws: how many times each token's successor is drawn. Without any the head is only run.
    """
    gradients = [torch.empty_like(states) for _ in range(draws)]
    for start in range(0, len(states), CHUNK):
        part = states[start : start + CHUNK].detach().requires_grad_()
        logits = head.logits(part).float()
        likely = logits.detach().softmax(-1)
        for left, gradient in zip(reversed(range(draws)), gradients, strict=True):
            tokens = _drawn(likely, generator)
            loss = F.cross_entropy(logits, tokens, reduction="sum")
            torch.autograd.backward(loss, retain_graph=left > 0)
            assert part.grad is not None
            gradient[start : start + CHUNK] = part.grad
            part.grad = None
    return gradients


def _drawn(likely: Tensor, generator: torch.Generator) -> Tensor:
    """A token of each row's distribution [tokens, vocabulary] → [tokens]. The random numbers are
    the CPU's on all devices, so all draw the same."""
    below = likely.cumsum(-1)
    chance = torch.rand(len(likely), 1, generator=generator).to(below)
    drawn = torch.searchsorted(below, chance * below[:, -1:])
    return drawn[:, 0].clamp_max(likely.shape[-1] - 1)
