"""Models and samples that are factorised on two devices. Shared by tests."""

from __future__ import annotations

import torch
import transformers
from generated_text import SETTINGS
from torch import nn


class Net(nn.Module):
    """Residual blocks, so that payback has a stream to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
            for _ in range(3)
        )
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


def llama():
    # An empty cache is made by a call that the stand-in for a device does not know.
    config = transformers.LlamaConfig(**SETTINGS["llama"], use_cache=False)
    return transformers.LlamaForCausalLM(config).eval()


def texts():
    ids = torch.randint(5, 50, (40, 12))
    mask = torch.ones_like(ids)
    mask[::3, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


# name → (makes the model, makes the samples)
CASES = {
    "net": (Net, lambda: torch.randn(40, 7, 24)),
    "language model": (llama, texts),
}
