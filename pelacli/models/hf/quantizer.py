"""transformers builds low-rank layers itself: pela as one of its methods of quantisation.

So ``AutoModelFor….from_pretrained``, ``pipeline`` and what stands on them read an artefact, by what
config.json says of its layers (`pelacli.manifest.low_rank_config`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from pelacli.manifest import low_rank_config
from pelacli.manifest.low_rank_config import METHOD
from pelacli.ranks.forms import FORMS, Form

_REMEDY = "take the config.json that belongs to these weights, or use pelacli.load"


def register() -> None:
    """Make pela known to transformers, once."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(LowRankConfig)
        register_quantizer(METHOD)(LowRankQuantizer)


class LowRankConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The ranks of a model's low-rank layers, by form.

    Raises:
        ValueError: something that this version of pela does not know, or a rank that is none.
    """

    def __init__(self, quant_method: str = METHOD, **layers: Mapping[str, int]) -> None:
        self.quant_method = quant_method
        for form, ranks in layers.items():
            if form not in FORMS or not isinstance(ranks, Mapping):
                raise ValueError(
                    f"config.json: quantization_config: this pela knows no {form!r}; a later one "
                    "has written it"
                )
            for name, rank in ranks.items():
                if type(rank) is not int or rank < 0:
                    raise ValueError(
                        f"config.json: quantization_config: {form}: {name}: {rank!r} is no rank"
                    )
            setattr(self, form, dict(ranks))

    def layers(self) -> Iterator[tuple[str, int, Form]]:
        """(name, rank, form) of each low-rank layer, by its name in the model that was saved."""
        for form in FORMS:
            for name, rank in getattr(self, form, {}).items():
                yield name, rank, form


class LowRankQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts low-rank layers in place before transformers fills them.

    Afterwards the model is one like any other: it may be cast and trained, and ``save_pretrained``
    writes what config.json says of its layers again.
    """

    requires_calibration = True  # there is no such model but from weights that pela wrote
    quantization_config: LowRankConfig

    def update_tp_plan(self, config: Any) -> Any:
        """Called with the configuration before the model is built. The key that keeps everybody
        else from it has done its work."""
        if getattr(config, "fusion_config", None) == low_rank_config.GUARD:
            del config.fusion_config
        arguments = getattr(config, "model_args", None)
        if isinstance(arguments, dict):
            # timm writes it among the arguments, and transformers' wrapper of timm gives it too.
            arguments.pop("num_classes", None)
        return config

    # Older releases of transformers call only the one, newer ones only the other.
    update_attn_implementation = update_tp_plan

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        from pelacli.errors import RequestError
        from pelacli.lowrank.replace import replace_empty

        named = _named_as_in(model)
        ranks: dict[str, int] = {}
        form_of: dict[str, Form] = {}
        self._elsewhere: list[str] = []  # layers that this class of the family does not have
        for name, rank, form in self.quantization_config.layers():
            here = named(name)
            if here is None:
                self._elsewhere.append(name)
            else:
                ranks[here], form_of[here] = rank, form
        try:
            replace_empty(model, ranks, form_of)
        except RequestError as error:
            raise ValueError(f"config.json: quantization_config: {error}; {_REMEDY}") from None
        self._shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}

    def postprocess_model(self, model: nn.Module, **kwargs: Any) -> None:
        """Check that no layer is random or of another shape, and leave a plain model."""
        from pelacli.models.hf import stated_layers

        self._refuse_other_shapes(model)
        self._refuse_random(model)
        for name in ("hf_quantizer", "quantization_method"):
            delattr(model, name)
        model.is_quantized = False  # type: ignore[assignment]
        stated_layers.state(model)

    def _refuse_other_shapes(self, model: nn.Module) -> None:
        """Older releases of transformers take a tensor of any shape where a method of quantisation
        loads the model.

        Raises:
            ValueError: naming the first tensor that has not the shape that the configuration says.
        """
        for name, tensor in model.state_dict().items():
            expected = self._shapes.get(name, tensor.shape)
            if tensor.shape != expected:
                raise ValueError(
                    f"{name}: the weights have {tuple(tensor.shape)}, the configuration says "
                    f"{tuple(expected)}; {_REMEDY}"
                )

    def _refuse_random(self, model: nn.Module) -> None:
        """transformers fills what the file lacks at random, and warns.

        Raises:
            ValueError: naming the first such tensor of a low-rank layer, or of a dense one that is
                low-rank in the file under a name that this class of the family does not have.
        """
        from pelacli.lowrank import find

        for name, low in find.low_rank_layers(model).items():
            for key, tensor in low.state_dict(keep_vars=True).items():
                if _is_random(tensor):
                    raise ValueError(f"the weights lack {name}.{key}; {_REMEDY}")
        for layer in find.find_layers(model) if self._elsewhere else ():
            tail = layer.name.split(".")[-2:]
            twins = [name for name in self._elsewhere if name.split(".")[-2:] == tail]
            weights = twins and layer.kind in ("linear", "conv1d")
            if weights and _is_random(model.get_parameter(f"{layer.name}.weight")):
                raise ValueError(
                    f"{layer.name}: {type(model).__name__} has it under another name than the "
                    f"model that was saved ({twins[0]}); load the class that config.json names"
                )

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _is_random(tensor: Any) -> bool:
    """Whether transformers has filled a tensor itself. What it has read it marks; what it leaves on
    the disk is on "meta"."""
    return not tensor.is_meta and not getattr(tensor, "_is_hf_initialized", False)


def _named_as_in(model: Any) -> Any:
    """A function from a layer's name in the file to its name in this class of the family, None
    where it has no such layer; by the rules by which transformers finds a tensor's place."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    mapping = get_model_conversion_mapping(model, None, None)
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in mapping if not isinstance(rule, WeightConverter)]
    state = model.state_dict()

    def named(name: str) -> str | None:
        key, _ = rename_source_key(
            f"{name}.weight", renamings, converters, model.base_model_prefix, state
        )
        return key.removesuffix(".weight") if key in state else None

    return named
