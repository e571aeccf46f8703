"""Open any model: the only package that knows timm and transformers by name.

A new family that timm or transformers can build needs nothing here. A model that neither of them
has is one file with the functions of `types.OwnAdapter`, and its names in the tables of `opening`.
"""

from pelacli.models.opening import carried, library, open, resolve_alias, wrap
from pelacli.models.structure import (
    blocks,
    example,
    no_decay,
    num_classes,
    set_classes,
    set_drop_path,
)
from pelacli.models.types import (
    ImageInput,
    Inputs,
    OpenModel,
    PairInput,
    TextInput,
    main_output,
    place,
    predict,
    to_device,
)

__all__ = [
    "ImageInput",
    "Inputs",
    "OpenModel",
    "PairInput",
    "TextInput",
    "blocks",
    "carried",
    "example",
    "library",
    "main_output",
    "no_decay",
    "num_classes",
    "open",
    "place",
    "predict",
    "resolve_alias",
    "set_classes",
    "set_drop_path",
    "to_device",
    "wrap",
]
