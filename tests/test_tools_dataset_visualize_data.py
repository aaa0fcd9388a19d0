"""tools/dataset/visualize_data.py: the cells of its sheets against samples of the loader."""

from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from data.datasets.composition import CompositionDataset
from data.image_io.images import read_image, to_uint8
from engine.config.config import apply_overrides, load_config
from evaluation.output.report import GAP_PX, LABEL_PX, label_line
from tests.helpers.paths import REPOSITORY
from tools.dataset.visualize_data import main

CONFIG = str(REPOSITORY / "configs" / "demo.py")
SIZE_PX, EPOCH = 48, 7
KINDS = ("image", "trimap", "alpha")


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    """Three cut-outs of soft discs and two backgrounds, all noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :60] - 30
    for name in ("rgba", "backgrounds"):
        (tmp_path / name).mkdir()
    for number in range(3):
        alpha = 255 * np.clip((20 + number - np.hypot(x, y)) / 6, 0, 1)
        pixels = np.dstack([rng.integers(0, 256, (60, 60, 3)), alpha]).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "rgba" / f"{number}.png")
        Image.fromarray(pixels[:, :, :3]).save(tmp_path / "backgrounds" / f"{number}.png")
    return tmp_path


def overrides(root: Path) -> list[str]:
    settings = {
        "dataset.foreground_dirs": f"[{root}/rgba]",
        "dataset.background_dirs": f"[{root}/backgrounds]",
        "dataset.crop_px": SIZE_PX,
        "dataset.degradation.jpeg_probability": 0.5,
        "batch_size": 3,
        "num_workers": 2,
    }
    return [
        f"train.samples_per_epoch={EPOCH}",
        "train.seed=4",
        "train.epochs=9",
        *(f"dataloader.train.{key}={value}" for key, value in settings.items()),
    ]


def drawn_by_a_training(root: Path, start: int, number: int) -> list[dict[str, torch.Tensor]]:
    cfg = load_config(CONFIG)
    apply_overrides(cfg, [*overrides(root), "dataloader.train.num_workers=0"])
    loader = instantiate(cfg.dataloader.train)
    loader.sampler.start = start
    batches = islice(loader, -(-number // 3))
    return [{kind: batch[kind][place] for kind in KINDS} for batch in batches for place in range(3)][:number]


def cells(sheet: np.ndarray, num_columns: int, cell_px: int = SIZE_PX):
    """Cut a sheet into captions (LABEL_PX, W, 3) and the three images (S, S, 3) below each, row by row."""
    for row in count():
        top = row * (LABEL_PX + cell_px)
        if top == len(sheet):
            return
        for column in range(num_columns):
            lefts = [(3 * column + kind) * (cell_px + GAP_PX) for kind in range(3)]
            caption = sheet[top : top + LABEL_PX, lefts[0] : lefts[2] + cell_px]
            yield caption, [sheet[top + LABEL_PX : top + LABEL_PX + cell_px, left : left + cell_px] for left in lefts]


@pytest.mark.parametrize(("epoch", "start"), [(0, 0), (2, 5)])
def test_a_sheet_shows_what_a_training_is_given_to_the_bit(root, capsys, epoch, start):
    path = root / "sheet.png"
    arguments = ["--epoch", str(epoch), "--start", str(start), "--num", "5", "--num-columns", "2"]
    assert main(["--config-file", CONFIG, "--output", str(path), "--cell-px", "48", *arguments, *overrides(root)]) == 0
    assert capsys.readouterr().out == f"drew 5 samples to {path}\n"
    drawn = drawn_by_a_training(root, epoch * EPOCH + start, 5)
    shown = list(cells(to_uint8(read_image(path)), 2))
    assert len(shown) == 6
    for sample, (_, images) in zip(drawn, shown[:5], strict=True):
        for kind, image in zip(KINDS, images, strict=True):
            expected = to_uint8(sample[kind].permute(1, 2, 0).numpy())
            np.testing.assert_array_equal(image, np.broadcast_to(expected, (SIZE_PX, SIZE_PX, 3)))
    assert all((image == 255).all() for image in shown[5][1])


def test_captions_name_epoch_and_index(root):
    path = root / "sheet.png"
    main(["--config-file", CONFIG, "--output", str(path), "--cell-px", "48", "--num-columns", "1", *overrides(root),
          "--num", "4", "--start", "5"])  # fmt: skip
    orders = [np.random.default_rng([4, epoch]).permutation(EPOCH) for epoch in range(2)]
    keys = [(0, orders[0][5]), (0, orders[0][6]), (1, orders[1][0]), (1, orders[1][1])]
    for (epoch, index), (caption, _) in zip(keys, cells(to_uint8(read_image(path)), 1), strict=True):
        expected = label_line([f"epoch {epoch}, index {index}"], caption.shape[1])
        np.testing.assert_array_equal(caption, to_uint8(expected))


def test_a_sample_that_cannot_be_read_is_shown_as_a_training_replaces_it(root, capsys):
    (root / "rgba" / "1.png").write_bytes(b"nothing")
    path = root / "sheet.png"
    arguments = ["--config-file", CONFIG, "--output", str(path), "--cell-px", "48", "--num-columns", "1", "--num", "6"]
    assert main([*arguments, *overrides(root)]) == 0
    shown = list(cells(to_uint8(read_image(path)), 1))
    for sample, (_, images) in zip(drawn_by_a_training(root, 0, 6), shown, strict=True):
        np.testing.assert_array_equal(images[0], to_uint8(sample["image"].permute(1, 2, 0).numpy()))
    order = np.random.default_rng([4, 0]).permutation(EPOCH)
    suffixes = {
        suffix
        for index, (caption, _) in zip(order, shown, strict=False)
        for suffix in ("", " replaced")
        if np.array_equal(caption, to_uint8(label_line([f"epoch 0, index {index}{suffix}"], caption.shape[1])))
    }
    assert suffixes == {"", " replaced"}
    error = capsys.readouterr().err
    assert error.startswith(f"visualize_data.py: replaced: cannot read {root}/rgba/1.png") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--config-file", "absent.py"], 2, "existing .py or .yaml file"),
        (
            ["--config-file", CONFIG, "dataloader.train.dataset.crop=3"],
            2,
            "dataloader.train.dataset.crop must be a section",
        ),
        (["--config-file", CONFIG, "dataloader.train.dataset.background_dirs=[absent]"], 1, "absent"),
        (["--config-file", CONFIG, "dataloader.train.dataset.degradation.jpeg_quality=[0,9]"], 2, "jpeg_quality must"),
        (["--config-file", CONFIG, "--output", "sheet.xyz"], 1, "sheet.xyz"),
    ],
)
def test_what_cannot_be_drawn_is_said(root, capsys, arguments, status, words):
    first = [argument for argument in overrides(root) if not arguments[-1].startswith(argument.partition("=")[0])]
    assert main([*arguments[:2], "--num", "1", *first, *arguments[2:]]) == status
    error = capsys.readouterr().err
    assert error.startswith("visualize_data.py: ") and words in error


def test_ctrl_c_is_one_line(root, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(CompositionDataset, "__getitem__", interrupt)
    assert main(["--config-file", CONFIG, "--num", "1", *overrides(root)]) == 130
    assert capsys.readouterr().err == "visualize_data.py: interrupted\n"


def test_a_data_set_of_which_nothing_can_be_read_is_one_line(root, capsys):
    for path in (root / "rgba").iterdir():
        path.write_bytes(b"nothing")
    assert main(["--config-file", CONFIG, "--num", "1", *overrides(root)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("visualize_data.py: no sample for epoch 0, index ")
    assert "cannot read" in error and error.count("\n") == 1
