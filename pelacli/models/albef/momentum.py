"""Momentum distillation: slow copies of the network, and queues of what they saw lately.

The copies are made of the network as it is when training begins, so those of a low-rank network
are low-rank, with the very factors of its own; they follow the factors from there. They take no
gradient, and dropout is off in them. They are there while training lasts: as a child of the
network (so that its checkpoints hold them), and no part of what is trained or written down.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.models.albef.network import Albef
from pelacli.models.pairs.losses import gathered
from pelacli.system import processes

NO_ID = -(2**62)  # of a place in the queue that no sample has filled yet
_SEED = 0x414C  # the queues start with the same random vectors on every process


class Momentum(nn.Module):
    """Copies and queues beside a network in training.

    Args:
        queue: pairs that are remembered; the whole of a batch over all processes may be larger,
            and need not divide it.
        decay: of the copies per update of the network; they move by 1 − decay.
        weight: share of the copies' opinion in soft targets, alpha, once it is ramped up.
        ramp: pairs over which alpha rises from 0, those of all processes; 0 has it at once.
    """

    def __init__(
        self,
        network: Albef,
        *,
        queue: int = 65536,
        decay: float = 0.995,
        weight: float = 0.4,
        ramp: int = 0,
    ) -> None:
        super().__init__()
        self.decay, self.weight, self.ramp = decay, weight, ramp
        if getattr(network, "momentum", None) is not None:
            raise RequestError("ALBEF: the model has momentum copies already")
        self._followed: int | None = None  # changes of the network's weights, when last followed
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        some = next(network.parameters())
        self.seen: Tensor
        self.place: Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.long, device=some.device))
        self.register_buffer("place", torch.zeros((), dtype=torch.long, device=some.device))
        self.images: Tensor
        self.texts: Tensor
        self.ids: Tensor
        if hasattr(network, "vision_proj"):
            draw = torch.Generator().manual_seed(_SEED)
            for name in ("images", "texts"):
                start = torch.randn(queue, network.config.embed_dim, generator=draw)
                self.register_buffer(name, F.normalize(start, dim=1).to(some.device))
            self.register_buffer("ids", torch.full((queue,), NO_ID, device=some.device))

    def train(self, mode: bool = True) -> Self:
        """The copies stay in eval mode, whatever the network that they follow does."""
        super().train(mode)
        self.network.eval()
        return self

    @property
    def alpha(self) -> float:
        """The share of the copies' opinion in soft targets, now."""
        return self.weight * (min(1.0, int(self.seen) / self.ramp) if self.ramp else 1.0)

    @torch.no_grad()
    def follow(self, network: Albef, pairs: int) -> None:
        """Move every parameter of the copies (factors, where they are low-rank) towards its own, if
        these have changed: several batches may make one update.

        Args:
            pairs: of this process's batch.
        """
        theirs = dict(_own_parameters(network))
        slow = dict(self.network.named_parameters())
        # Each change in place counts one on; that of the temperature is clamped in every pass.
        changes = sum(p._version for name, p in theirs.items() if name != "temp")
        if changes != self._followed:
            torch._foreach_lerp_(
                list(slow.values()), [theirs[name] for name in slow], weight=1 - self.decay
            )
            self._followed = changes
        self.seen += pairs * processes.rank_and_size()[1]

    @torch.no_grad()
    def remember(self, images: Tensor, texts: Tensor, ids: Tensor | None = None) -> None:
        """Put features [B, E] of this process's pairs, and everybody else's, into the queues.

        Args:
            ids: [B] whole numbers; pairs with the same one belong together.
        """
        images, texts = gathered(images.detach()), gathered(texts.detach())
        size = len(self.images)
        images, texts = images[-size:], texts[-size:]
        at = (self.place + torch.arange(len(images), device=self.place.device)) % size
        self.images[at] = images.to(self.images.dtype)
        self.texts[at] = texts.to(self.texts.dtype)
        self.ids[at] = NO_ID if ids is None else gathered(ids)[-size:]
        self.place.copy_((self.place + len(images)) % size)


def attach(network: Albef, **settings: int | float) -> Momentum:
    """Give the network its momentum copies, before it trains; see `Momentum` for the settings."""
    network.momentum = Momentum(network, **settings)  # type: ignore[arg-type]
    return network.momentum


def detach(network: Albef) -> None:
    """Take the copies away again, when training is over."""
    if getattr(network, "momentum", None) is not None:
        del network.momentum


def of(network: Albef) -> Momentum | None:
    """The network's momentum copies, where it has some."""
    return getattr(network, "momentum", None)


def _own_parameters(network: Albef) -> Iterator[tuple[str, nn.Parameter]]:
    return ((n, p) for n, p in network.named_parameters() if not n.startswith("momentum."))
