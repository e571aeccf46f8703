"""Object detection: boxes and classes of objects in images; COCO's average precision.

Data are COCO's JSON files or hub datasets with an ``objects`` column (`pelacli.data.formats.coco`);
models are transformers' detectors, or a backbone of timm or transformers that a detector is built
around. Processor, loss (with its matching of queries to objects) and post-processing are the
model's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.models.opened import OpenModel
    from pelacli.recipe.data import Data

from pelacli.console import info
from pelacli.data.dataset import Dataset
from pelacli.data.formats import coco, hub_objects
from pelacli.data.loader import Batch
from pelacli.data.sources import open_source
from pelacli.errors import RequestError
from pelacli.lowrank.calls import evaluating
from pelacli.models import blocks, class_names, heads
from pelacli.models.around import detector as around_detector
from pelacli.models.hf import detectors
from pelacli.models.inputs import ImageInput
from pelacli.system import extras
from pelacli.system.devices import move_batch
from pelacli.tasks.base import Base
from pelacli.tasks.common.augment import refuse_settings_of_classification
from pelacli.tasks.common.average_precision import AveragePrecision
from pelacli.tasks.common.boxes import (
    CollateBoxes,
    ImagesAlone,
    PrepareBoxes,
    augmentation,
    targets,
)
from pelacli.tasks.common.heads import all_named, head_classes


class Task(Base):
    MAIN: ClassVar[str | None] = "ap"

    crop: float = Field(0.5, ge=0, le=1, description="share of images that are cropped")
    zoom_out: float = Field(0.0, ge=0, le=1, description="share of images set into a canvas")
    sizes: list[int] = Field([], description="sides that training draws from; one if unset")
    boxes: Literal["xywh", "xyxy"] = Field("xywh", description="form of a hub dataset's boxes")
    detector: Literal["yolos", "detr"] | None = Field(
        None, description="what to build around a backbone; if unset YOLOS for an HF ViT, else DETR"
    )
    queries: int = Field(100, ge=1, description="objects that a built one can find in an image")
    detector_args: list[str] = Field([], description='its architecture, as ["d_model=128"]')

    # Data ---------------------------------------------------------------------------------------

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        if not isinstance(inputs, ImageInput):
            raise RequestError("detection needs a model of images, and this one reads text")
        if training:
            remedy = "set task_args.crop and zoom_out"
            refuse_settings_of_classification("detection", data.augment, crops=remedy)
        source, name, classes = self._source(data.dataset, split, unlabelled)
        labelled = classes is not None and not unlabelled
        if labelled:  # or a long training would end where its figures are computed
            extras.require("pycocotools", f"{data.dataset}: the average precision of boxes")
        names, class_numbers = _numbering(classes or [], inputs.labels)
        processor = detectors.image_processor(inputs)
        sides: list[int | None] = [data.image_size]
        if training and self.sizes:
            sides = list(self.sizes)
        transform = None
        if training and not data.augment.none:
            crop, zoom_out = (self.crop, self.zoom_out) if labelled else (0.0, 0.0)
            transform = augmentation(data.augment, crop, zoom_out)
        sizes = [detectors.sized(processor, side) for side in sides]
        mode = "L" if inputs.size[0] == 1 else "RGB"
        prepare = PrepareBoxes(processor, sizes, mode, class_numbers, transform)
        if not labelled:
            source = ImagesAlone(source)
        known, own = (names, classes) if labelled else (None, None)
        collate = CollateBoxes(inputs.mask, bare=inputs.fixed)
        return Dataset(data.dataset, source, prepare, collate, name, known, labelled, own)

    def _source(
        self, spec: str, split: str, unlabelled: bool
    ) -> tuple[Any, str | None, list[str] | None]:
        """(images by index, the split's name, class names)."""
        of_hub = spec.startswith("hfds/")
        if of_hub and not unlabelled:
            rows, classes, name = hub_objects.find(spec, split, self.boxes)
            return rows, name, classes
        annotations = None if of_hub else coco.find(spec, split)
        if annotations is not None:
            file, folders, name = annotations
            images, classes = coco.read(file, folders)
            return images, name, classes
        if not unlabelled:
            raise RequestError(
                f"{spec}: no COCO data: neither annotations/instances_SPLIT.json nor "
                "SPLIT/_annotations.coco.json is in it"
            )
        source, split_name, _ = open_source(spec, split, training=False, unlabelled=True)
        return source, split_name, None

    # Model --------------------------------------------------------------------------------------

    def fits(self, opened: OpenModel) -> bool:
        """Whether the model finds boxes."""
        return detectors.is_detector(opened.module)

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """A detector around a backbone; a fresh classifier where the data has other classes."""
        names, count = head_classes(dataset, classes)
        if not detectors.is_detector(opened.module):
            kind, args = self.detector, _settings(self.detector_args)
            size = dataset.make.sizes[0] if isinstance(dataset.make, PrepareBoxes) else None
            opened = around_detector.detector(opened, kind, count, self.queries, args, seed, size)
            info(f"a {type(opened.module).__name__} around {opened.ref}")
        elif count != heads.num_classes(opened) or class_names.are_others(
            names, cast(ImageInput, opened.inputs).labels
        ):
            heads.set_classes(opened, count, seed=seed)
            info(f"a fresh head of {count} classes")
        else:
            return opened
        class_names.write(opened, all_named(names, count))
        return opened

    def taps(self, module: nn.Module) -> list[str]:
        """The blocks; not those of the heads, nor of a decoder whose queries stand for regions that
        each model selects itself: those of teacher and student need not be the same."""
        left_out = set(detectors.head(module))
        if detectors.selects_queries(module):
            left_out |= {name for name, _ in module.named_modules() if name.endswith("decoder")}
        return [
            block
            for block in blocks.blocks(module)
            if not any(f"{block}.".startswith(f"{name}.") for name in left_out)
        ]

    # Batches ------------------------------------------------------------------------------------

    def forward(self, module: nn.Module, batch: Batch) -> Any:
        """The model's output; with its loss where the batch has labels and gradients are on."""
        if "labels" not in batch or not torch.is_grad_enabled():
            return detectors.run(module, batch["inputs"])
        labels = [
            {"class_labels": image["class_labels"], "boxes": image["boxes"]}
            for image in targets(batch)
        ]
        return detectors.with_loss(module, batch["inputs"], labels)

    def loss(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """The model's own loss by parts."""
        if "labels" not in batch:
            raise RequestError("the data has no boxes, which detection needs")
        parts: dict[str, Tensor] = output["loss_dict"]
        return parts

    # Judging ------------------------------------------------------------------------------------

    def metrics(self, num_classes: int | None) -> AveragePrecision:
        return AveragePrecision()

    @torch.no_grad()
    def evaluate(
        self,
        module: nn.Module,
        loader: Iterable[Batch],
        device: torch.device,
        num_classes: int | None,
    ) -> dict[str, float]:
        """COCO's figures of the model's detections, at the images' original sizes."""
        data = getattr(loader, "dataset", None)
        if data is not None and num_classes and data.classes and len(data.classes) != num_classes:
            raise RequestError(
                f"{data.spec}: has {len(data.classes)} classes ({', '.join(data.classes[:3])}, …) "
                f"and the model {num_classes} others: fine-tune it on them first"
            )
        metrics = self.metrics(num_classes)
        with evaluating(module):
            for batch in loader:
                batch = move_batch(batch, device)
                output = self.forward(module, batch)
                metrics.update(detectors.detections(module, output, batch["sizes"]), batch)
        return metrics.compute()


def _settings(pairs: list[str]) -> dict[str, Any]:
    """ "name=value" pairs, whose values are JSON or else text."""
    settings = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise RequestError(f"task_args.detector_args: {pair!r} is no name=value")
        try:
            settings[name.strip()] = json.loads(value)
        except ValueError:
            settings[name.strip()] = value.strip()
    return settings


def _numbering(classes: list[str], labels: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """(class names, the number of each of the data's classes among them).

    A model that names all of the data's classes keeps its own numbers (COCO's detectors have gaps
    in theirs); else the data's order counts.

    Args:
        labels: the model's names.
    """
    numbers = class_names.positions(classes, labels)
    return (classes, list(range(len(classes)))) if numbers is None else (list(labels), numbers)
