"""A test file started again by torchrun: in its processes it does what its ``__main__`` says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pelacli


def by_torchrun(
    file: str, folder: Path, processes: int, **environment: str
) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of so many processes of the file, to which the folder is given."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), file, str(folder)]
    # What tests share lies beside this file, and the package may be a checkout.
    paths = [str(Path(__file__).parent), str(Path(pelacli.__file__).parents[1])]
    paths.append(os.environ.get("PYTHONPATH", ""))
    return command, os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment
