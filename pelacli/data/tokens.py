"""Texts → what a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs

from pelacli.errors import RequestError
from pelacli.models.inputs import TextInput


@dataclass(frozen=True)
class Tokens:
    """Texts → what a model reads."""

    tokenizer: Any
    max_length: int
    fill: bool = False  # to max_length, not to the longest of a batch

    @classmethod
    def of(cls, inputs: Inputs, spec: str) -> Tokens:
        """Those of a model.

        Args:
            spec: the data, in errors.

        Raises:
            RequestError: the model reads no text, or came without its tokenizer.
        """
        if not isinstance(inputs, TextInput):
            raise RequestError(f"{spec}: the task is about texts, and the model reads none")
        if inputs.tokenizer is None:
            raise RequestError(f"{spec}: the model came without the tokenizer that text needs")
        return cls(inputs.tokenizer, inputs.max_length, inputs.fill)

    @property
    def padding(self) -> int:
        """The token that fills batches up."""
        self._choose_padding()
        return int(self.tokenizer.pad_token_id)

    def _choose_padding(self) -> None:
        if self.tokenizer.pad_token is None:  # GPT-2 and its kin; padding is masked: any will do
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token is None:
            raise RequestError(
                "the model's tokenizer has neither a padding nor an end-of-text token; name one in "
                "its tokenizer_config.json"
            )

    def __call__(self, texts: list[str], seconds: list[str] | None = None) -> dict[str, Tensor]:
        """The texts (or pairs of a text and its second one), padded to the longest: [B, N] each."""
        self._choose_padding()
        both = [texts] if seconds is None else [texts, seconds]
        return dict(
            self.tokenizer(
                *both,
                padding="max_length" if self.fill else True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
        )


def tokenise(
    tokenizer: Any, sentences: list[str], max_length: int, *, fill: bool = False
) -> dict[str, Tensor]:
    """What the model takes for sentences: tensors [B, T], padded to the longest of them, or, with
    ``fill``, to ``max_length``."""
    return Tokens(tokenizer, max_length, fill)(sentences)
