"""Whether the data of a step opens: its splits, and labels where the step needs them."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.data import IterableDataset

from pelacli.console import warn_once
from pelacli.data import bad_samples, hub
from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.models.opened import OpenModel
from pelacli.recipe.data import Data
from pelacli.recipe.keys import Key
from pelacli.recipe.step import NamedTask
from pelacli.steps.preflight.problems import Problems
from pelacli.tasks import registry


def key_of_data(section: str, own: Data | None) -> Key:
    """The key of the data of a section: its own, or else the recipe's."""
    return (section, "data") if own is not None else ("data",)


def key_of_dataset(at: Key) -> Key:
    """The key of a dataset's name, in the section ``at`` or ``at`` itself."""
    return (*at, "dataset") if at[-1] == "data" else at


def is_here(data: Data) -> bool:
    """Whether the dataset can be opened without fetching or converting it."""
    return not data.dataset.startswith(("torch/", "hfds/"))


def look_from_afar(problems: Problems, data: Data, split: str, at: Key, split_key: Key) -> None:
    """Look for a split of a dataset that another library fetches, as far as that needs no fetching.

    Args:
        at: the key of the data's section, or of the name of a dataset.
    """
    key = key_of_dataset(at)
    if data.dataset.startswith("torch/"):
        message = f"{data.dataset}: not looked at, as that would fetch it"
        warn_once(message, f"{problems.place_of(key)}: {message}")
        return
    with problems.at(key, key_of_split({split: split_key})):
        hub.check_split(data.dataset, split)


def look(
    problems: Problems,
    opened: OpenModel,
    data: Data,
    split: str,
    task: NamedTask,
    at: Key,
    split_key: Key,
    batch_size: int | None = None,
    *,
    training: bool = False,
) -> None:
    """Open a split without labels, and read its first sample.

    Args:
        at: the key of the data's section, or of the name of a dataset.
        batch_size: of all processes, to see whether each of them has its samples; None: they are
            not shared out, or shared out otherwise.
        training: whether they are trained on.
    """
    if not is_here(data):
        look_from_afar(problems, data, split, at, split_key)
        return
    with problems.at(key_of_dataset(at), key_of_split({split: split_key})):
        judged = registry.get(task.name, task.settings)
        dataset = judged.open(data, split, inputs=opened.inputs, unlabelled=True)
        if not isinstance(dataset.source, IterableDataset):  # which is not begun
            skips = data.skips_bad and split == data.train
            dataset.collate([bad_samples.first(dataset, skips=skips)])
        if batch_size is not None:
            augment = data.augment if training else None
            loader(dataset, batch_size=batch_size, drop_last=training, augment=augment)


def key_of_split(keys: dict[str, Key], task_key: Key = ("task",)) -> Callable[[str], Key | None]:
    """The key of the split that a message misses, or of the task that does not fit the model.

    Args:
        keys: a split's name → its key.
    """

    def key_of(message: str) -> Key | None:
        if "the task is about" in message:
            return task_key
        return next((key for name, key in keys.items() if f"no split {name!r}" in message), None)

    return key_of


def check_labelled(spec: str, labelled: bool) -> None:
    """Refuse data without labels.

    Raises:
        RequestError: with the remedy.
    """
    if not labelled:
        raise RequestError(
            f"{spec}: has no labels, which training on a task needs; name data that has them, or "
            "leave the section out"
        )
