"""What a transformers model reads: its tokenizer, how long a text may be, what padding is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from torch import nn

from pelacli.errors import RequestError
from pelacli.messages import naming, one_line
from pelacli.models.hf.examples import arguments, longest_text
from pelacli.models.hf.heads import causal, own_classes
from pelacli.models.hf.processors import RESTORE
from pelacli.models.inputs import TextInput
from pelacli.models.pairs import hf as pair_views
from pelacli.system import json_files

_LONGEST = 512  # tokens, where neither model nor tokenizer says


def text_input(module: nn.Module, config: Any, directory: Path | None) -> TextInput:
    """What a text model wants, from its own files where there are any.

    Args:
        config: of the model, or of its part that reads text.
    """
    tokenizer = None if directory is None else _tokenizer(module, config, directory)
    vocabulary = _vocabulary(module)
    return TextInput(
        tokenizer,
        _longest(module, config, tokenizer, directory),
        fill="siglip" in str(getattr(module.config, "model_type", "")),
        marks=pair_views.marks(module),
        classes=own_classes(module),
        causal=causal(module),
        answers=bool(getattr(module.config, "is_encoder_decoder", False)),
        vocabulary=vocabulary,
        padding=_padding(module, config, tokenizer, vocabulary),
        # XLNet's classifiers read the last position.
        padding_side="left" if getattr(config, "summary_type", None) == "last" else "right",
    )


def _tokenizer(module: nn.Module, config: Any, directory: Path) -> Any:
    """The tokenizer of a directory, giving what the model takes; None where there is none."""
    if not any(directory.glob("tokenizer*")):
        return None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # each kind of file has a reader with errors of its own
        raise RequestError(
            f"{directory}: its tokenizer can't be read: {one_line(error, 160)}; put the files of "
            "the original model's tokenizer there"
        ) from None
    takes = arguments(module)
    one_kind = int(getattr(config, "type_vocab_size", 0) or 0) < 2
    tokenizer.model_input_names = [
        name
        for name in tokenizer.model_input_names
        if name in takes and not (name == "token_type_ids" and one_kind)
    ]
    return tokenizer


def _longest(module: nn.Module, config: Any, tokenizer: Any, directory: Path | None) -> int:
    """Tokens that a text may have. A tokenizer without a limit says 1e30."""
    longest = longest_text(config) or _LONGEST
    for name, table in module.named_modules():  # RoBERTa and its kin count from the padding on
        offset = getattr(table, "padding_idx", None)
        if name.endswith("position_embeddings") and offset is not None:
            longest -= offset + 1
            break
    with naming(f"{directory}: tokenizer_config.json: model_max_length", RESTORE):
        limit = int(getattr(tokenizer, "model_max_length", longest) or longest)
    if directory is not None and (directory / "sentence_bert_config.json").is_file():
        # sentence-transformers trained the model on shorter texts than its positions allow.
        file = directory / "sentence_bert_config.json"
        with naming(str(file), RESTORE):
            limit = int(json_files.read_as(dict, file, RESTORE).get("max_seq_length") or limit)
    return min(longest, limit)


def _vocabulary(module: nn.Module) -> int | None:
    """Rows of the table that embeds tokens; None where the model does not show it."""
    try:
        table: Any = module.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _padding(module: nn.Module, config: Any, tokenizer: Any, vocabulary: int | None) -> int | None:
    """The token by which a classifier of whole texts knows padding: decoders read the last token
    that is none. None for all other models, which a mask tells.

    Where the configuration names none, it gets the tokenizer's: transformers refuses batches of
    several texts otherwise. For −1, as the first Llamas have it, it would read the padding.
    """
    if not type(module).__name__.endswith("ForSequenceClassification"):
        return None
    known = getattr(config, "pad_token_id", None)
    if known is not None and 0 <= known < (vocabulary or known + 1):
        return int(known)
    if tokenizer is None:
        return None
    own = tokenizer.pad_token_id
    config.pad_token_id = tokenizer.eos_token_id if own is None else own
    return None if config.pad_token_id is None else int(config.pad_token_id)
