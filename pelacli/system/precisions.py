"""What precisions are called, and which of them a device computes in. torch is imported by the
first question about a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAMES = ("fp32", "bf16", "fp16")
# Other words for them: torch's, and accelerate's "no" mixed precision.
_SPELLINGS = {
    "float32": "fp32", "float": "fp32", "full": "fp32", "no": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16", "half": "fp16",
}  # fmt: skip


def canonical(value: Any) -> Any:
    """The name of a precision: "BFloat16" and "torch.bfloat16" are "bf16". Anything that is no word
    for one comes back as it is."""
    if not isinstance(value, str):
        return value
    word = value.strip().lower().removeprefix("torch.")
    return word if word in NAMES else _SPELLINGS.get(word, value)


def obstacle(precision: str, device: torch.device) -> str | None:
    """Why a device does not compute in a precision, and what it has instead, as
    "this CPU has no bfloat16"; None where it does.

    What a device can only imitate counts as missing: it would be slower than float32 and no more
    exact.
    """
    import torch

    kind = device.type
    if precision == "fp16" and kind == "cpu":
        return "fp16 is for GPUs" + ("; this CPU has 'bf16'" if _cpu_has_bf16() else "")
    if precision == "bf16" and kind == "cpu" and not _cpu_has_bf16():
        return "this CPU has no bfloat16"
    if precision == "bf16" and kind == "cuda" and not torch.cuda.is_bf16_supported(False):
        return "this GPU has no bfloat16; it has 'fp16'"
    return None


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies in bfloat16: x86's AVX-512 or AMX, ARM's extension. An older torch
    does not tell of all of them; then it is taken to."""
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:
        return True
    known = capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
