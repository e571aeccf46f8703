"""Texts → what a model reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs

from pelacli.errors import RequestError
from pelacli.models.inputs import TextInput


@dataclass
class Cuts:
    """How many texts were longer than the model reads, and were cut.

    Attributes:
        limit: tokens that were kept of each.
    """

    texts: int = 0
    limit: int = 0


_cuts: ContextVar[Cuts | None] = ContextVar("cuts", default=None)


@contextmanager
def counting_cuts() -> Iterator[Cuts]:
    """While active, the texts that this thread cuts are counted."""
    cuts = Cuts()
    token = _cuts.set(cuts)
    try:
        yield cuts
    finally:
        _cuts.reset(token)


@dataclass(frozen=True)
class Tokens:
    """Texts → what a model reads.

    Padding is behind the text, whatever side the tokenizer was saved with: decoders such as GPT-2
    number positions from the left, so that the output would depend on the other texts of a batch.
    Models that read their last position (XLNet) say otherwise in ``TextInput.padding_side``.

    Attributes:
        fill: pad to max_length, not to the longest of a batch.
        vocabulary, own_padding, padding_side: see `TextInput`.
        spec: the data, in errors.
    """

    tokenizer: Any
    max_length: int
    fill: bool = False
    vocabulary: int | None = None
    own_padding: int | None = None
    padding_side: str = "right"
    spec: str = "texts"

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
        return cls(
            inputs.tokenizer,
            inputs.max_length,
            inputs.fill,
            inputs.vocabulary,
            inputs.padding,
            inputs.padding_side,
            spec,
        )

    @property
    def padding(self) -> int:
        """The token that fills batches up."""
        self._choose_padding()
        return int(self.tokenizer.pad_token_id if self.own_padding is None else self.own_padding)

    def _choose_padding(self) -> None:
        if self.tokenizer.pad_token is None:  # GPT-2 and its kin; padding is masked: any will do
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token is None:
            raise RequestError(
                "the model's tokenizer has neither a padding nor an end-of-text token; name one in "
                "its tokenizer_config.json"
            )

    def __call__(self, texts: list[str], seconds: list[str] | None = None) -> dict[str, Tensor]:
        """The texts (or pairs of a text and its second one), padded to the longest: [B, N] each.

        Raises:
            RequestError: a text has no tokens, or one that the model does not know.
        """
        self._choose_padding()
        both = [texts] if seconds is None else [texts, seconds]
        encoded = self.tokenizer(
            *both,
            padding="max_length" if self.fill else True,
            padding_side=self.padding_side,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        ids, mask = encoded["input_ids"], encoded.get("attention_mask")
        lengths = ids.new_full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1)
        if not lengths.all():
            empty = texts[int(lengths.argmin())]
            raise RequestError(
                f"{self.spec}: the text {empty!r:.60} has no tokens; leave its row out"
            )
        if ids.shape[1] > self.max_length:
            raise RequestError(
                f"{self.spec}: the tokenizer can't cut a text to {self.max_length} tokens; correct "
                "its model_max_length in tokenizer_config.json"
            )
        self.check_known(ids)
        if self.own_padding is not None and mask is not None:
            encoded["input_ids"] = ids.masked_fill(mask == 0, self.own_padding)
        cuts = _cuts.get()
        if cuts is not None:
            each = getattr(encoded, "encodings", None) or ()  # slow tokenizers have none
            cuts.texts += sum(bool(one.overflowing) for one in each)
            cuts.limit = self.max_length
        return dict(encoded)

    def check_known(self, ids: Any) -> None:
        """Refuse tokens that the model has no embeddings of.

        Args:
            ids: a tensor or an array of any shape, with one token at least.

        Raises:
            RequestError: the tokenizer is not the model's, or has tokens that were added later.
        """
        highest = int(ids.max())
        if self.vocabulary is not None and highest >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise RequestError(
                f"{self.spec}: the tokenizer gives {token!r} the number {highest}, and the model "
                f"knows tokens 0 to {self.vocabulary - 1}: use the model's tokenizer, or resize "
                "its embeddings (resize_token_embeddings)"
            )
