"""Open any model: the only package that knows timm and transformers by name.

A new family that timm or transformers can build needs nothing here. A further library is one more
file beside `timm_models` and `hf_models`, and one more branch in `opening.open` and
`opening.library`.
"""

from pelacli.models.opening import library, open, resolve_alias, wrap
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
    OpenModel,
    TextInput,
    main_output,
    place,
    predict,
    to_device,
)

__all__ = [
    "ImageInput",
    "OpenModel",
    "TextInput",
    "blocks",
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
