"""Images with trimaps, and command lines of tools/predict.py."""

from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import LazyConfig, instantiate

from engine.config.config import apply_overrides, load_config
from tests.helpers.paths import DEMO
from tests.helpers.training import overrides
from tools import predict

IMAGE_SIZES = {"a": (40, 56), "b": (48, 33), "c.d": (31, 64)}


def image_and_trimap(height, width, seed=0):
    """Random uint8 RGB and a uint8 trimap: background above, foreground below, unknown between."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    trimap = np.full((height, width), 128, np.uint8)
    trimap[: height // 5] = 0
    trimap[-(height // 5) :] = 255
    return image, trimap


def write_images(parent):
    """Write `images/NAME.png` and `trimaps/NAME.bmp` of IMAGE_SIZES; the unknown of a trimap is a range of greys."""
    rng = np.random.default_rng(0)
    for folder in ("images", "trimaps"):
        (parent / folder).mkdir()
    for name, (height, width) in IMAGE_SIZES.items():
        y, x = np.mgrid[:height, :width]
        distance = np.hypot(y - height / 2, x - width / 2) + 3 * np.sin(y / 3)
        greys = rng.integers(120, 132, (height, width))
        trimap = np.where(distance < 6, 255, np.where(distance > 13, 0, greys)).astype(np.uint8)
        cv2.imwrite(str(parent / "trimaps" / f"{name}.bmp"), trimap)
        cv2.imwrite(str(parent / "images" / f"{name}.png"), rng.integers(0, 256, (height, width, 3), np.uint8))


def write_run(folder):
    """Write `config.yaml` and random `weights.pth` of a tiny network."""
    cfg = load_config(DEMO)
    apply_overrides(cfg, overrides(folder, folder))
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    for parameter in model.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    LazyConfig.save(cfg, str(folder / "config.yaml"))


def predict_arguments(folder, *more, image="images", trimap="trimaps", output="out"):
    """Command line over paths below a folder; None leaves one out."""
    option = "--trimap" if trimap and Path(trimap).suffix else "--trimap-dir"
    paths = {option: trimap, "--output": output}
    options = [part for name, path in paths.items() if path for part in (name, folder / path)]
    return [str(part) for part in (folder / image, *options, *more)]


def run(folder, *more, status=0, **paths):
    """Run tools/predict.py over paths below a folder, see `predict_arguments`."""
    assert predict.main(predict_arguments(folder, *more, **paths)) == status


def by_network(run_folder):
    return ["--config-file", run_folder / "config.yaml", "--weights", run_folder / "weights.pth"]


def read_grey(path):
    """Stored grey values, which must be one 8-bit channel."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None and image.dtype == np.uint8 and image.ndim == 2, path
    return image
