"""An opened model: the module, and what is needed to write it down again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pelacli.manifest.document import SourceRecord
from pelacli.models.inputs import Inputs
from pelacli.models.on_disk import Weights


@dataclass
class OpenModel:
    """A model, ready to run, with what is needed to write it down again.

    Attributes:
        module: the network, on the CPU, in eval mode (on "meta" where only its shape was asked).
        ref: what the user asked for.
        library: "timm", "transformers", or one of pela's own (`pelacli.models.opening`).
        config: becomes config.json of an artefact; the library can rebuild the dense network
            from it.
        carried: further files of the model's directory (processors, tokenizers), by relative path.
        source: where the weights came from.
        inputs: what a sample looks like.
        head: names of the output head's modules.
        weights: where the values of what is on "meta" are read from, of a model that is opened
            lazily (`pelacli.models.on_disk`); None where the module holds them itself.
        stored: what a tensor is stored as where that is not what it is computed in: name in the
            module's state → type. See `pelacli.models.precision`.
    """

    module: nn.Module
    ref: str
    library: str
    config: dict[str, Any]
    carried: dict[str, bytes]
    source: SourceRecord
    inputs: Inputs
    head: frozenset[str] = field(default_factory=frozenset)
    stored: dict[str, torch.dtype] = field(default_factory=dict)
    weights: Weights | None = None

    @property
    def params(self) -> int:
        """Parameters of the whole model; a shared one counts once."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def bytes(self) -> int:
        """What its parameters take in the precision that they are stored in; a shared one once."""
        return sum(
            p.numel() * self.stored.get(name, p.dtype).itemsize
            for name, p in self.module.named_parameters()
        )

    def describe(self, folder: Path) -> None:
        """Write config.json and the carried files, from which the library rebuilds the dense
        network."""
        for name, content in self.carried.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        text = json.dumps(self.config, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
