"""The small hub of the tests, on loopback, for commands in child processes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_TESTS = Path(__file__).parents[1] / "tests"


@contextmanager
def serving(repositories: Path) -> Iterator[Callable[[], None]]:
    """While active, there is a hub whose repositories lie in a folder. What it gives is called in a
    child process, whose requests to the hub then go there, with a token that may write."""
    sys.path.insert(0, str(_TESTS))
    try:
        fake_hub = importlib.import_module("fake_hub")
    finally:
        sys.path.remove(str(_TESTS))
    # So that no child has to import it, and the seconds of the first run are those of all.
    importlib.import_module("huggingface_hub.hf_api")
    importlib.import_module("pelacli.steps.push")
    with fake_hub.serving(repositories) as address:

        def use() -> None:
            import huggingface_hub.constants

            vars(huggingface_hub.constants).update(ENDPOINT=address, HF_HUB_OFFLINE=False)
            os.environ["HF_TOKEN"] = fake_hub.TOKEN

        yield use
