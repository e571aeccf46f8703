"""What the benchmarks share: layers to factorise, clocks, the process's memory, fits and plots."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

MIB = 2**20

# name: (blocks, width) of the vision Transformers whose layers are factorised
VITS = {
    "vit_tiny": (12, 192),
    "vit_small": (12, 384),
    "vit_base": (12, 768),
    "vit_large": (24, 1024),
}


def vit_shapes(blocks: int, width: int) -> list[tuple[int, int]]:
    """(out, in) of a vision Transformer's linear layers: qkv, proj, fc1, fc2 of every block."""
    d = width
    return [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)] * blocks


def network(shapes: Sequence[tuple[int, int]], decay: float = 0.5, seed: int = 0) -> nn.ModuleList:
    """Linear layers of these shapes whose spectra fall like trained ones do.

    Args:
        decay: column j of a random matrix is scaled by j^−decay.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = nn.ModuleList()
    for out, in_ in shapes:
        layer = nn.Linear(in_, out, device="meta")
        scale = torch.arange(1, in_ + 1).pow(-decay)
        weight = torch.randn(out, in_, generator=generator).mul_(scale)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = nn.Parameter(torch.zeros(out), requires_grad=False)
        layers.append(layer)
    return layers


def seconds(run: Callable[[], object], repeats: int = 1) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures were measured on, for their record."""
    return {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def resident() -> float:
    """Memory of this process, MiB. Linux only, as `reset_peak` and `peak`."""
    return _status("VmRSS")


def peak() -> float:
    """The most memory that this process had since `reset_peak`, MiB."""
    return _status("VmHWM")


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _status(key: str) -> float:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
    raise KeyError(key)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size, by least squares."""
    xs, ys = [math.log(x) for x in sizes], [math.log(y) for y in costs]
    return statistics.linear_regression(xs, ys).slope


def plot(title: str, curves: dict[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """An SVG of curves (name → sizes, costs) on two logarithmic axes."""
    colours = ("#1f6fb2", "#c2571a", "#2e8540", "#7a4fa3")
    every_x = [x for xs, _ in curves.values() for x in xs]
    every_y = [y for _, ys in curves.values() for y in ys]

    def place(value: float, values: Sequence[float], start: float, length: float) -> float:
        low, high = math.log(min(values)), math.log(max(values))
        return start + length * (math.log(value) - low) / max(high - low, 1e-9)

    def point(x: float, y: float) -> tuple[float, float]:
        return place(x, every_x, 70, 500), place(y, every_y, 330, -280)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="400" font-family="sans-serif" '
        'font-size="12"><rect width="640" height="400" fill="white"/>',
        f'<text x="70" y="24" font-size="14">{title}</text>',
        '<path d="M70 40V330H580" fill="none" stroke="#888"/>',
    ]
    for x in sorted(set(every_x)):
        parts.append(f'<text x="{point(x, 1)[0]:.0f}" y="348" text-anchor="middle">{x:g}</text>')
    for y in (min(every_y), max(every_y)):
        parts.append(f'<text x="64" y="{point(1, y)[1]:.0f}" text-anchor="end">{y:.2g}</text>')
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        colour = colours[i % len(colours)]
        points = [point(x, y) for x, y in zip(xs, ys, strict=True)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        slope = exponent(xs, ys)
        parts.append(
            f'<text x="80" y="{56 + 16 * i}" fill="{colour}">{name}: exponent {slope:.2f}</text>'
        )
    return "\n".join([*parts, "</svg>"])
