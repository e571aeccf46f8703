"""Semantic segmentation: a class for every pixel; intersection over union in percent.

A model that classifies images becomes a segmenter (`pelacli.models.around.segmenter`) when it is
trained; transformers' own segmentation models are taken as they are, with the data's classes.

Training samples are square: the image is scaled by chance, cropped, and mirrored by chance, its
mask with it. In evaluation the image is stretched to the model's square, and the logits are scaled
to the mask's own size, so that figures are of the pixels that were annotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.models.opened import OpenModel
    from pelacli.recipe.data import Data

from pelacli.console import info
from pelacli.data.dataset import Dataset
from pelacli.data.formats import masks
from pelacli.data.formats.mask_numbers import refuse_single_class
from pelacli.data.loader import Batch
from pelacli.data.sources import open_source
from pelacli.errors import RequestError
from pelacli.models import heads, outputs
from pelacli.models.around import segmenter
from pelacli.models.inputs import ImageInput
from pelacli.recipe.fields import Range
from pelacli.tasks.base import Base
from pelacli.tasks.common.augment import refuse_settings_of_classification
from pelacli.tasks.common.heads import head_classes
from pelacli.tasks.common.masks import CollateMasks, PrepareMask, joint_transform
from pelacli.tasks.common.metrics import TorchMetrics


class Task(Base):
    MAIN: ClassVar[str | None] = "miou"

    classes: int | None = Field(None, ge=2, description="how many, where no classes.txt says it")
    ignore_index: int = Field(255, description="label of pixels that do not count")
    reduce_labels: bool = Field(
        False, description="0 is no class but other, and does not count (ADE20K)"
    )
    resize: Range = Field(
        (0.5, 2.0), description="least and most of a training image's shorter side, in crops"
    )
    channels: int = Field(512, ge=1, description="width of UperNet's maps")
    pool_scales: list[int] = Field([1, 2, 3, 6], description="grids that UperNet pools to")
    auxiliary: float = Field(0.4, ge=0, description="weight of the FCN head's loss; 0: without it")
    auxiliary_channels: int = Field(256, ge=1, description="width of the FCN head")

    @model_validator(mode="after")
    def _pools(self) -> Self:
        if not self.pool_scales or min(self.pool_scales) < 1:
            raise ValueError("pool_scales are whole numbers of 1 and more, as [1, 2, 3, 6]")
        return self

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
        """Images and masks as `pelacli.data.formats.masks` reads them; any images unlabelled."""
        spec, augment = data.dataset, data.augment
        if not isinstance(inputs, ImageInput):
            raise RequestError(
                f"{spec}: the model wants more than images, so it can't segment them"
            )
        refuse_settings_of_classification("segmentation", augment, crops="set task_args.resize")
        if unlabelled and not masks.is_masks(spec):
            source, split_name, _ = open_source(spec, split, training=training, unlabelled=True)
            names = None
        else:
            source, split_name, names = masks.open_masks(spec, split, images_only=unlabelled)
        count = None
        if not unlabelled:
            count = self._count(names, spec)
            refuse_single_class(
                source,
                spec,
                ignore=self.ignore_index,
                reduce=self.reduce_labels,
                training=training,
            )
        _, height, width = inputs.size
        size = (data.image_size, data.image_size) if data.image_size else (height, width)
        transform = None
        if training and not augment.none:
            transform = joint_transform(inputs, size, augment, self.resize, self.ignore_index)
        prepare = PrepareMask(inputs, size, transform, count, self.ignore_index, self.reduce_labels)
        collate = CollateMasks(self.ignore_index)
        classes = None if count is None else names or [str(number) for number in range(count)]
        return Dataset(spec, source, prepare, collate, split_name, classes, not unlabelled)

    def _count(self, names: list[str] | None, spec: str) -> int:
        count = self.classes or (len(names) if names else None)
        if count is None:
            raise RequestError(
                f"{spec}: does not say how many classes it has: add a classes.txt with a name on "
                "each line, or set task_args.classes"
            )
        if names and len(names) != count:
            raise RequestError(
                f"{spec}: classes.txt names {len(names)} classes, and task_args.classes is {count}"
            )
        if 0 <= self.ignore_index < count:
            raise RequestError(
                f"task_args.ignore_index: {self.ignore_index} is one of the {count} classes"
            )
        return count

    # Model --------------------------------------------------------------------------------------

    def fits(self, opened: OpenModel) -> bool:
        return segmenter.segments(opened)

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """A segmenter around the model, or the segmenter that it is, with as many classes as the
        recipe or the data says."""
        _, count = head_classes(dataset, classes)
        if segmenter.segments(opened):
            if count != heads.num_classes(opened):
                heads.set_classes(opened, count, seed=seed)
                info(f"a fresh classifier of {count} classes")
            return opened
        height, width = cast(PrepareMask, dataset.make).size
        if height != width:
            raise RequestError(f"{opened.ref}: takes no square images; set data.image_size")
        fitted = segmenter.around(
            opened,
            classes=count,
            image_size=height,
            channels=self.channels,
            pool_scales=self.pool_scales,
            auxiliary_channels=self.auxiliary_channels if self.auxiliary else 0,
            seed=seed,
        )
        info(f"UperNet for {count} classes around {opened.ref}, at {height} px")
        return fitted

    # Batches ------------------------------------------------------------------------------------

    def forward(self, module: nn.Module, batch: Batch) -> Any:
        """Logits [B, classes, h, w] by the name of the head: "logits", and "auxiliary" where the
        model has that head too."""
        result = module(batch["inputs"])
        if isinstance(result, Mapping) and "auxiliary" in result:
            return dict(result)
        return {"logits": outputs.main_output(result)}

    def loss(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, the mean over the pixels that count, of logits scaled to the masks."""
        if "masks" not in batch:
            raise RequestError("the data has no masks, which segmentation needs")
        losses = {"task": self._cross_entropy(output["logits"], batch["masks"])}
        if self.auxiliary and "auxiliary" in output:
            loss = self._cross_entropy(output["auxiliary"], batch["masks"])
            losses["auxiliary"] = self.auxiliary * loss
        return losses

    def _cross_entropy(self, logits: Tensor, mask: Tensor) -> Tensor:
        scaled = scale(logits, (mask.shape[-2], mask.shape[-1]))
        total = F.cross_entropy(scaled, mask, ignore_index=self.ignore_index, reduction="sum")
        return total / (mask != self.ignore_index).sum().clamp(min=1)  # a crop may hold no class

    def metrics(self, num_classes: int | None) -> Overlap:
        if not num_classes:
            raise RequestError("segmentation needs to know the number of classes")
        return Overlap(num_classes, self.ignore_index)


def scale(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, classes, h, w] → [B, classes, *size], float32."""
    logits = logits.float()
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class Overlap(TorchMetrics):
    """Figures of one confusion matrix over all pixels that count, in percent.

    ``miou``: TP / (TP + FP + FN), the mean over the classes that occur in masks or predictions;
    ``mean_accuracy``: TP / (TP + FN), the mean over the classes that occur in masks;
    ``pixel_accuracy``: the share of pixels of the right class.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.matrix = MulticlassConfusionMatrix(
            num_classes, ignore_index=ignore_index, validate_args=False
        )
        super().__init__(matrix=self.matrix)

    def update(self, output: Any, batch: Batch) -> None:
        """Add a batch. Each mask counts at its own size, [:height, :width] of what was padded."""
        for logits, mask, (height, width) in zip(
            output["logits"], batch["masks"], batch["sizes"].tolist(), strict=True
        ):
            scaled = scale(logits[None], (height, width))
            self.matrix.update(scaled.argmax(1), mask[None, :height, :width])

    def compute(self) -> dict[str, float]:
        counts = self.matrix.compute().cpu().double()  # [true, predicted]
        hit, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        union = true + predicted - hit
        figures = {
            "miou": (hit / union)[union > 0],
            "mean_accuracy": (hit / true)[true > 0],
            "pixel_accuracy": hit.sum()[None] / counts.sum(),
        }
        return {name: 100 * float(values.mean()) for name, values in figures.items()}
