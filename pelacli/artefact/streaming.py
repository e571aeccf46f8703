"""Write a model's weights tensor by tensor, each read or made when its turn comes.

The files are those that huggingface_hub's `save_torch_state_dict` writes, byte for byte, which
would want all tensors of a shard in memory at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pelacli.models.plain_reading import LENGTH, TYPES
from pelacli.system import bytes_done

# torch's types → what safetensors calls them
_TYPES = {kind: name for name, kind in TYPES.items()}
# Types in the order in which safetensors writes their tensors
_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
_ALIGNMENT = 8  # bytes that a header's length is a multiple of


def write_weights(
    shapes: Mapping[str, Tensor], read: Callable[[str], Tensor], folder: Path
) -> None:
    """Write the shards, and their index where there are several.

    Args:
        shapes: name → a tensor of the shape and type that is written; may be on "meta".
        read: gives the values.

    Raises:
        OSError: the disk refuses.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(
        {name: tensor.to("meta") for name, tensor in shapes.items()}
    )
    with bytes_done.part("writing", sum(tensor.nbytes for tensor in shapes.values())):
        for file, names in split.filename_to_tensors.items():
            _write_file({name: shapes[name] for name in names}, read, folder / file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2)
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _write_file(shapes: Mapping[str, Tensor], read: Callable[[str], Tensor], file: Path) -> None:
    """One safetensors file: the header's length, the header, the values.

    Types come in safetensors' order, the widest first, and then names in order.
    """
    names = sorted(shapes, key=lambda name: (_ORDER.index(_TYPES[shapes[name].dtype]), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for name in names:
        tensor = shapes[name]
        starts[name] = start = end
        end += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(LENGTH, "little"))
        out.write(text)
        # By name, whatever its type: a layer whose tensors are made is asked for all of them then.
        for name in sorted(names):
            out.seek(LENGTH + len(text) + starts[name])
            tensor = read(name)
            like = shapes[name]
            if tensor.shape != like.shape or tensor.dtype != like.dtype:
                raise ValueError(f"{name}: is {tensor.dtype} {list(tensor.shape)} now")
            out.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            bytes_done.done(tensor.nbytes)
