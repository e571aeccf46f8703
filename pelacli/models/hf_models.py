"""What pela knows about transformers: build, weights, config, head (inputs: `hf_inputs`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from pelacli.aliases import closest
from pelacli.errors import RequestError
from pelacli.models.hf_inputs import example as example
from pelacli.models.hf_inputs import inputs as inputs
from pelacli.models.hf_inputs import quiet


def is_type(name: str) -> bool:
    """Whether transformers knows ``name`` as a model type ("bert", "gpt2", …)."""
    return name in transformers.CONFIG_MAPPING


def types() -> list[str]:
    """All model types of transformers."""
    return list(transformers.CONFIG_MAPPING)


def build_random(model_type: str, model_args: dict[str, Any], num_classes: int | None) -> nn.Module:
    """A model of this type with its default configuration, randomly initialised.

    Raises:
        RequestError: model_args that the type doesn't have, or that don't fit.
    """
    _refuse_unknown(transformers.AutoConfig.for_model(model_type), model_args, model_type)
    try:
        config = transformers.AutoConfig.for_model(model_type, **model_args)
        return from_config(_with_classes(config, num_classes))
    except Exception as error:  # each architecture checks in its own way
        raise RequestError(f"{model_type}: model_args don't fit: {_first(error)}") from None


def open_directory(
    directory: Path, *, random: bool, model_args: dict[str, Any], num_classes: int | None
) -> tuple[nn.Module, list[str]]:
    """Open a model directory.

    Returns:
        (the module, names of parameters that the checkpoint lacks and are fresh).

    Raises:
        RequestError: config or weights can't be used.
    """
    config = _with_classes(read_config(directory, model_args), num_classes)
    if random:
        return from_config(config), []
    if not any(directory.glob("*.safetensors")):
        raise RequestError(
            f"{directory}: has no safetensors weights, and pela never unpickles; convert them, "
            "or use --weights random"
        )
    cls = _class(config)
    with quiet():
        try:
            module, info = cls.from_pretrained(
                directory,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=num_classes is not None,
            )
        except Exception as error:  # transformers raises whatever its file readers raise
            raise RequestError(
                f"{directory}: the weights can't be loaded: {_first(error)}"
            ) from None
    return module, sorted(info["missing_keys"])


def read_config(directory: Path, model_args: dict[str, Any]) -> Any:
    """config.json as transformers reads it."""
    try:
        plain = transformers.AutoConfig.from_pretrained(directory)
        _refuse_unknown(plain, model_args, str(directory))
        if not model_args:
            return plain
        return transformers.AutoConfig.from_pretrained(directory, **model_args)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"{directory}/config.json: {_first(error)}") from None


def from_config(config: Any) -> nn.Module:
    """The class that the config names, built from it, with fresh weights."""
    cls = _class(config)
    config.architectures = config.architectures or []  # Funnel's two are looked for in it
    build = cls._from_config if hasattr(cls, "_from_config") else cls.from_config
    module: nn.Module = build(config)
    return module


def rebuild(directory: Path) -> nn.Module:
    """The dense architecture that config.json describes, its weights on "meta".

    Buffers that no checkpoint holds (positions, rotary frequencies) have their values.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        module = from_config(read_config(directory, {}))
    module.tie_weights()  # type: ignore[operator]  # built without memory, shared weights come apart
    if any(b.is_meta for b in module.buffers()):  # computed from a weight, so only the long way
        return from_config(read_config(directory, {}))
    return module


def config(module: nn.Module) -> dict[str, Any]:
    """config.json as transformers writes it, with the class to load it by."""
    module.config.architectures = [type(module).__name__]  # type: ignore[union-attr]
    text: str = module.config.to_json_string()  # type: ignore[union-attr,operator]
    result: dict[str, Any] = json.loads(text)
    return result


def head(module: nn.Module) -> frozenset[str]:
    """Names of the modules that make the output: the output embeddings, and what is no backbone."""
    names = set()
    get: Any = getattr(module, "get_output_embeddings", lambda: None)
    output = get()
    base = getattr(module, "base_model", module)
    for name, child in module.named_modules():
        if output is not None and child is output:
            names.add(name)
    if base is not module:
        names |= {name for name, child in module.named_children() if child is not base}
    return frozenset(names)


def set_classes(module: nn.Module, num_classes: int) -> None:
    """Give the model a fresh classifier in the place of the one it has."""
    old = getattr(module, "classifier", None)
    if not isinstance(old, nn.Linear):
        raise RequestError(
            f"{type(module).__name__}: has no classifier to exchange; start from a checkpoint with "
            "a classification head"
        )
    module.classifier = nn.Linear(old.in_features, num_classes, old.bias is not None)
    module.num_labels = module.config.num_labels = num_classes  # type: ignore[union-attr,assignment]


def num_classes(module: nn.Module) -> int | None:
    """Outputs of the classifier; None for a model without one."""
    # Every configuration has num_labels, whether the model has a classifier or not.
    kinds = ("Classification", "Segmentation", "ObjectDetection")
    classifies = any(kind in type(module).__name__ for kind in kinds)
    labels: Any = getattr(module.config, "num_labels", None)
    return int(labels) if labels and (classifies or hasattr(module, "classifier")) else None


def _refuse_unknown(config: Any, model_args: dict[str, Any], where: str) -> None:
    """transformers would keep a misspelt setting and do nothing with it."""
    for name in model_args:
        if not hasattr(config, name) and not hasattr(config, f"_{name}"):
            near = closest(name, list(config.to_dict()), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RequestError(f"{where}: model_args: its configuration has no {name!r}{hint}")


def _with_classes(config: Any, num_classes: int | None) -> Any:
    if num_classes is not None:
        config.num_labels = num_classes
    return config


def _class(config: Any) -> Any:
    """The class a config names; AutoModel where it names none that exists here."""
    named = [getattr(transformers, name, None) for name in config.architectures or []]
    return next((cls for cls in named if cls is not None), transformers.AutoModel)


def _first(error: Exception) -> str:
    """The one informative line of a library's long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return (lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0])[:300]
