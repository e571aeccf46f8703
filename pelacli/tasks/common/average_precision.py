"""COCO's average precision, by torchmetrics over pycocotools, over all processes of a run."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert

from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.system import processes
from pelacli.tasks.common.boxes import targets

# Our names of torchmetrics' figures. Small, medium and large objects are COCO's: below 32², up to
# 96², and above.
_NAMES = {
    "ap": "map",
    "ap50": "map_50",
    "ap75": "map_75",
    "aps": "map_small",
    "apm": "map_medium",
    "apl": "map_large",
}


class AveragePrecision:
    """``ap`` (mean over overlaps of 0.50 to 0.95 and over the classes), ``ap50``, ``ap75``, and
    ``aps``, ``apm``, ``apl`` where there are objects of that size; all in points of 100."""

    def __init__(self) -> None:
        # (number of the image, its detections, its true objects), on the CPU
        self.images: list[tuple[int, dict[str, Tensor], dict[str, Tensor]]] = []

    def to(self, device: torch.device) -> AveragePrecision:
        return self

    def update(self, output: list[dict[str, Tensor]], batch: Batch) -> None:
        """Add a batch.

        Args:
            output: for each image ``boxes`` (left, top, right, bottom in pixels of the original),
                ``scores`` and ``labels``.
        """
        sizes = batch["sizes"].float()
        for number, detections, target, size in zip(
            batch["numbers"].tolist(), output, targets(batch, crowds=True), sizes, strict=True
        ):
            truth = {
                "boxes": box_convert(target["boxes"], "cxcywh", "xyxy") * size.flip(0).repeat(2),
                "labels": target["class_labels"],
                "iscrowd": target["crowd"].long(),
                "area": target["area"],
            }
            self.images.append((number, _on_cpu(detections), _on_cpu(truth)))

    def compute(self) -> dict[str, float]:
        """The figures of all processes' images.

        Raises:
            RequestError: there are no objects in them.
        """
        # torchmetrics would gather list by list, and waits for ever where processes have seen
        # different numbers of images.
        gathered = itertools.chain(*processes.all_gather(self.images))
        images = sorted(gathered, key=lambda image: image[0])
        metric = MeanAveragePrecision(sync_on_compute=False)
        metric.warn_on_many_detections = False  # COCO counts the best hundred of an image
        detections, truths = [image[1] for image in images], [image[2] for image in images]
        metric.update(detections, truths)
        if not any(len(truth["labels"]) for truth in truths):
            raise RequestError("the data has no objects to find, which average precision needs")
        values = metric.compute()
        figures = {name: float(values[key]) for name, key in _NAMES.items()}
        return {name: 100 * value for name, value in figures.items() if value >= 0}


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: (value.float() if value.is_floating_point() else value).cpu()
        for name, value in tensors.items()
    }
