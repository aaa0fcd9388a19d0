"""A training run of seconds for tests and `make soak`: its data, its settings, what it says in the end."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np

from tests.helpers.paths import DEMO, REPOSITORY


def make_data(folder):
    """Draw three RGBA discs, as many backgrounds, and test images of 96 x 80 px with trimaps and alphas."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    for name in ("rgba", "backgrounds", "image", "trimap", "alpha"):
        (folder / name).mkdir()
    for i in range(3):
        alpha = np.clip(32 + 4 * i - np.hypot(y - 48, x - 48), 0, 8) / 8
        image = rng.integers(0, 256, (96, 96, 3))
        cv2.imwrite(str(folder / f"rgba/{i}.png"), np.dstack((image, 255 * alpha)).astype(np.uint8))
        cv2.imwrite(str(folder / f"backgrounds/{i}.png"), image[:, ::-1].astype(np.uint8))
        cv2.imwrite(str(folder / f"image/{i}.png"), image[:80].astype(np.uint8))
        cv2.imwrite(str(folder / f"alpha/{i}.png"), (255 * alpha[:80]).astype(np.uint8))
        trimap = np.where(alpha == 1, 255, np.where(alpha == 0, 0, 128))[:80]
        cv2.imwrite(str(folder / f"trimap/{i}.png"), trimap.astype(np.uint8))


def overrides(data, output, **changes):
    """Overrides of configs/demo.py: a network of two blocks, 6 iterations of 2 crops, a checkpoint after 3."""
    settings = {
        "train.output_dir": output,
        "train.init_checkpoint": "''",
        "train.samples_per_epoch": 6,
        "train.epochs": 2,
        "train.epochs_per_checkpoint": 1,
        "train.warmup_samples": 4,
        "train.log_period": 1,
        "model.backbone.embed_dim": 32,
        "model.backbone.depth": 2,
        "model.backbone.num_heads": 1,
        "model.backbone.window_size": 2,
        "model.backbone.global_block_indexes": "[1]",
        "model.backbone.drop_path_rate": 0.3,
        "model.decoder.convstream_chans": "[4,4,4]",
        "model.decoder.fusion_chans": "[8,8,8,8]",
        "dataloader.train.batch_size": 2,
        "dataloader.train.num_workers": 0,
        "dataloader.train.dataset.crop_px": 64,
        "dataloader.train.dataset.foreground_dirs": f"[{data}/rgba]",
        "dataloader.train.dataset.background_dirs": f"[{data}/backgrounds]",
        "dataloader.test.num_workers": 0,
        "dataloader.test.dataset.image_dir": data / "image",
        "dataloader.test.dataset.trimap_dir": data / "trimap",
        "dataloader.test.dataset.alpha_dir": data / "alpha",
        **changes,
    }
    return [f"{key}={value}" for key, value in settings.items()]


def metrics(output):
    """Give iteration -> what metrics.json says of it. Losses there are medians of the last 20."""
    return {row["iteration"]: row for row in map(json.loads, (output / "metrics.json").read_text().splitlines())}


def last_evaluation(output):
    """Metrics after the last iteration, rounded as the log prints them."""
    rows = metrics(output)
    prefix = "matting/"
    return {name.removeprefix(prefix): round(value, 4) for name, value in rows[max(rows)].items() if prefix in name}


def printed_evaluation(text):
    """Metrics as the log prints them last: a line of names, a line of numbers."""
    names, numbers = (part.split()[0].split(",") for part in text.split("copypaste: ")[-2:])
    return dict(zip(names, map(float, numbers), strict=True))


def best_evaluation(output):
    """Iteration and value of the lowest SAD in metrics.json, the iteration counted as checkpoints do."""
    rows = metrics(output)
    last = max(rows)  # an evaluation at the end stands one further than the last step
    sads = {min(iteration, last - 1): row["matting/SAD"] for iteration, row in rows.items() if "matting/SAD" in row}
    return min(sads.items(), key=lambda item: item[1]), list(sads)


def start_two_processes(*arguments):
    command = ["main.py", "--config-file", DEMO, "--num-gpus", "2", "--dist-url", "auto", *arguments]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_two_processes(*arguments):
    process = start_two_processes(*arguments)
    output = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, *output)
