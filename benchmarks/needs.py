"""How near the estimate of calibration's memory comes to what it takes.

    python benchmarks/needs.py
    python benchmarks/needs.py vit_base_patch16_224 32

Each model has random weights at full size and runs in a process of its own, whose peak is read from
/proc, so this is for Linux. Peaks are those above the opened model, in MB.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

# model, samples (images, or texts of 256 tokens)
CASES = (
    ("vit_base_patch16_224", 32),
    ("vit_small_patch14_dinov2", 8),
    ("swin_tiny_patch4_window7_224", 32),
    ("bert", 64),
    ("gpt2", 64),
)
TOKENS = 256


def main() -> None:
    """All cases, or the one that is named."""
    if len(sys.argv) > 2:
        print(measure(sys.argv[1], int(sys.argv[2])))
        return
    print("| model | samples | estimate | calibration | with correction |\n|---|---|---|---|---|")
    for name, samples in CASES:
        command = [sys.executable, __file__, name, str(samples)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout.strip() or f"| {name} | {samples} | {done.stderr.strip()[-80:]} |")


def measure(name: str, samples: int) -> str:
    """A line of the table."""
    import torch

    from pelacli.factorize import needs
    from pelacli.factorize.engine import Keep
    from pelacli.lowrank.find import Selection
    from pelacli.models import examples, opening
    from pelacli.planning.choice import choose
    from pelacli.recipe.decompose import Decompose
    from pelacli.steps.dense import examine
    from pelacli.steps.factorization import solve

    opened = opening.open(name, weights="random")
    example = examples.example(opened)
    batches: list[Any] = []
    for start in range(0, samples, 32):
        count = min(32, samples - start)
        if isinstance(example, torch.Tensor):
            batches.append(torch.randn(count, *example.shape[1:]))
        else:
            ids = torch.randint(1, 20000, (count, TOKENS))
            batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    dense = examine(opened.module, Selection(opened.head, (), ()), opened.ref, opened)
    estimates: list[needs.Needs] = []
    real = needs.calibrated

    def watched(*args: Any, **kwargs: Any) -> needs.Needs | None:
        known = real(*args, **kwargs)
        if known is not None:
            estimates.append(known)
        return known

    needs.calibrated = watched
    before = _peak(reset=True)
    solved = solve(dense, batches, Keep.PLANNED, correct=True)
    one_shot = _peak(reset=True) - before
    solved.fit(choose(solved.spectra, dense.size, Decompose(ratio="0.5")))
    both = max(one_shot, _peak() - before)
    estimate = max(known.peak for known in estimates) / 1e6
    return f"| {name} | {samples} | {estimate:.0f} | {one_shot:.0f} | {both:.0f} |"


def _peak(*, reset: bool = False) -> float:
    """The most that was resident since the last reset, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        now = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        if reset and not hasattr(_peak, "begun"):
            _peak.begun = True  # type: ignore[attr-defined]
            return int(now.split()[1]) * 1024 / 1e6
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
