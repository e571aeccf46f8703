"""What config.json says of low-rank layers, for transformers: its hook for quantisation methods.

::

    "quantization_config": {
        "quant_method": "pela",
        "factors": {"encoder.layer.0.output.dense": 24},     layer → rank, by form
        "pivots": {"encoder.layer.0.attention.self.query": 31}
    },
    "fusion_config": {"low-rank layers of pela; …": false}

After ``import pelacli``, transformers builds these layers (`pelacli.models.hf.quantizer`). Without
it, it would warn of an unknown quantisation method and fill dense layers at random. So the second
key names a fusion of modules that it doesn't know and refuses, with the remedy in its name.
``pelacli.load`` reads neither.

timm looks at none of this. It is strict about weights, but where it is asked for another number of
classes or for features alone: then it takes the classifier's name from ``pretrained_cfg`` and would
leave low-rank layers random behind a warning. So that name stands outside of it, under
``pela_classifier``, and timm stays strict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pelacli.ranks.forms import FORMS, Form

METHOD = "pela"
# A key that transformers refuses by name, since it knows no such fusion of modules
GUARD = {"low-rank layers of pela; run `import pelacli` (pip install pelacli) first": False}
KEYS = (_LAYERS, _GUARD) = ("quantization_config", "fusion_config")
_LIBRARIES = ("transformers", "timm")  # transformers opens timm's models too
_CLASSIFIER = "pela_classifier"


def with_layers(
    config: Mapping[str, Any], library: str, ranks: Mapping[str, int], form_of: Mapping[str, Form]
) -> dict[str, Any]:
    """A config.json that says which layers are low-rank, or nothing of it where none is.

    Args:
        ranks, form_of: by the layers' names; a layer without a form is one of factors.
    """
    dense = {key: value for key, value in config.items() if not (key in KEYS and is_ours(value))}
    dense = with_classifier(dense)
    if library not in _LIBRARIES or not ranks:
        return dense
    layers: dict[str, Any] = {"quant_method": METHOD}
    for form in FORMS:
        of_form = {n: rank for n, rank in ranks.items() if form_of.get(n, "factors") == form}
        if of_form:
            layers[form] = of_form
    if library == "timm":
        dense = _without_classifier(dense)
    return {**dense, _LAYERS: layers, _GUARD: dict(GUARD)}


def with_classifier(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of timm with the classifier's name where timm has it."""
    config = dict(config)
    if _CLASSIFIER in config:
        name = config.pop(_CLASSIFIER)
        config["pretrained_cfg"] = {**config.get("pretrained_cfg", {}), "classifier": name}
    return config


def _without_classifier(config: dict[str, Any]) -> dict[str, Any]:
    about = config.get("pretrained_cfg")
    if not isinstance(about, Mapping) or "classifier" not in about:
        return config
    rest = {key: value for key, value in about.items() if key != "classifier"}
    return {**config, "pretrained_cfg": rest, _CLASSIFIER: about["classifier"]}


def is_ours(value: Any) -> bool:
    """Whether the value of one of the two keys is pela's."""
    return isinstance(value, Mapping) and (value.get("quant_method") == METHOD or value == GUARD)
