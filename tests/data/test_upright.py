"""Every reader of images gives them the right way up; boxes and masks have tests of their own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image

from pelacli.data.dataset import open_dataset
from pelacli.models.inputs import ImageInput, PairInput
from pelacli.recipe.data import Augment, Data
from pelacli.tasks import registry
from pelacli.tasks.common.pictures import PreparePicture

GREY = ImageInput((1, 8, 8), (0.0,), (1.0,))
COLOUR = ImageInput((3, 8, 8), (0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def turned(tmp_path):
    """train/x/a.png and train/y/a.png: white above black, stored turned by half a circle."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    image = Image.fromarray(np.repeat([[0] * 8, [255] * 8], 4, 0).astype(np.uint8))
    for name in "xy":
        (tmp_path / "train" / name).mkdir(parents=True)
        image.save(tmp_path / "train" / name / "a.png", exif=exif)
    return tmp_path


def column(pixels):
    return pixels[0, :, 0].tolist()


UPRIGHT = [1.0] * 4 + [0.0] * 4


@pytest.mark.parametrize("prefix", ["", "hfds/"])
@pytest.mark.parametrize("unlabelled", [True, False])
def test_folders_and_hub_datasets(turned, prefix, unlabelled, monkeypatch):
    if prefix:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(turned / "cache"))
    dataset = open_dataset(f"{prefix}{turned}", "train", inputs=GREY, unlabelled=unlabelled)
    assert column(dataset[0]["inputs"]) == UPRIGHT


@pytest.mark.parametrize(
    "task", ["detection", "segmentation", "unlabelled", "image-classification"]
)
def test_calibration_of_every_task(turned, task):
    how = {"unlabelled": True, "inputs": GREY}
    if task == "detection":
        pytest.importorskip("transformers")
        from tiny_detectors import tiny_detector

        how["inputs"] = tiny_detector("yolos").inputs
    dataset = registry.get(task).open(Data(dataset=str(turned), image_size=48), "train", **how)
    pixels = dataset[0]["inputs"]
    assert pixels[0, 0].min() > pixels[0, -1].max()


@pytest.mark.parametrize("of_hub", [True, False])
def test_pictures_of_texts(turned, of_hub):
    """Retrieval, questions, entailment, grounding and vision-language prepare pictures by this."""
    data = Data(dataset="x", augment=Augment(none=True))
    picture = PreparePicture(PairInput(COLOUR, None), data, training=False)
    file = turned / "train" / "x" / "a.png"
    raw = SimpleNamespace(read=file.read_bytes) if of_hub else str(file)
    pixels, _ = picture(raw, "x")
    assert column(pixels) == UPRIGHT
