"""What a file holds and its model does not take, and the other way round: the refusal of both."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from pelacli.errors import RequestError
from pelacli.models.wrapped_names import common_front

_SHOWN = 3  # names in a message
# What libraries of quantisation keep beside, or in place of, a layer's weight.
_SCALES = re.compile(
    r"(weight_scale(_inv|_\w+)?|input_scale|weight_packed|weight_shape|qweight|qzeros|scales|g_idx|"
    r"SCB|absmax|quant_map|quant_state\.\w+|weight\.(absmax|quant_\w+)|weight_format)$"
)
_ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\b")


@dataclass
class Misfit:
    """How a file and a model differ.

    Attributes:
        unexpected: tensors that the file holds and the model has no place for.
        missing: tensors of the model that the file does not hold.
        shapes: what is of another shape, as a library says it.
    """

    unexpected: Collection[str] = ()
    missing: Collection[str] = ()
    shapes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether they differ."""
        return bool(self.unexpected or self.missing or self.shapes)

    def refusal(self, where: object, model: str, remedy: str = "") -> RequestError:
        """The error that names what does not fit, the place and the remedy.

        Args:
            where: the file or the directory.
            model: what the file was to fill: the architecture, or the name of the class.
            remedy: what to do, if the names themselves say nothing better.
        """
        parts = list(self.shapes[:1])
        if self.unexpected:
            parts.insert(0, f"holds {listed(self.unexpected)}, for which {model} has no place")
        if self.missing:
            parts.append(f"lacks {listed(self.missing)}" + ("" if parts else f" of {model}"))
        return RequestError(f"{where}: {'; '.join(parts)}; {self._remedy(remedy)}")

    def _remedy(self, otherwise: str) -> str:
        if any(_ADAPTER.search(name) for name in self.unexpected):
            return "merge the adapter into the weights first (merge_and_unload of peft)"
        if any(_SCALES.search(name) for name in self.unexpected):
            return "the weights are quantised; take the checkpoint in bfloat16 or float32"
        front = common_front(self.unexpected)
        bare = {name.removeprefix(front) for name in self.unexpected}
        if front and self.missing and bare >= set(self.missing):
            return f"the names would fit without {front!r} in front: save the weights without it"
        return otherwise or "take the weights of this very model"


def listed(names: Iterable[str]) -> str:
    """Some names, first those that tell most, and how many more there are."""
    names = sorted(
        names, key=lambda name: (not (_SCALES.search(name) or _ADAPTER.search(name)), name)
    )
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
