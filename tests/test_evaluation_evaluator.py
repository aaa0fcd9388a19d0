"""The evaluator inside training: equal to the command on its files, to one process when run in two, flat in memory."""

import json
import logging

import cv2
import numpy as np
import pytest
import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from data.datasets.composition import MattingFolder
from data.image_io.images import DataError
from data.loader.build import build_test_loader
from evaluation.evaluator import MattingEvaluator
from evaluation.metrics import METRICS, PROTOCOLS, measure
from runtime.errors import ConfigError, UserError
from tests.helpers.toy_training import in_two_processes
from tools import evaluate

SIZES = [(17, 29), (32, 15), (16, 16), (29, 11), (28, 38), (20, 20), (9, 41)]


def make_batch(seed: int) -> tuple[dict, dict[str, Tensor]]:
    """A test batch and a prediction whose values lie anywhere between the levels of 8 bit."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 1, *SIZES[seed % len(SIZES)])
    alpha = torch.randint(0, 256, shape, generator=generator) / 255
    trimap = torch.randint(0, 3, shape, generator=generator) / 2
    inputs = {"image": torch.rand(1, 3, *shape[2:]), "alpha": alpha, "trimap": trimap, "name": [f"image_{seed}"]}
    return inputs, {"pred_alpha": torch.rand(shape, generator=generator)}


class MeanOfColours(nn.Module):
    """A network without weights: its values lie between the levels of 8 bit, as those of a real one."""

    def forward(self, batch: dict) -> dict[str, Tensor]:
        return {"pred_alpha": batch["image"].mean(dim=1, keepdim=True)}


@pytest.fixture
def test_set(tmp_path):
    """Folder with 7 images of different sizes; odd ones have 16-bit ground truths, and image 3 has no unknown pixel."""
    rng = np.random.default_rng(0)
    for folder in ("merged", "trimaps", "alpha_copy"):
        (tmp_path / folder).mkdir()
    for i, (height, width) in enumerate(SIZES):
        y, x = np.mgrid[:height, :width]
        alpha = np.clip(8 - np.hypot(y - height / 2, x - width / 2) + rng.normal(0, 1, y.shape), 0, 6) / 6
        trimap = np.where(alpha == 1, 255, np.where(alpha == 0, 0, 0 if i == 3 else 128))
        stored = (65535 * alpha).astype(np.uint16) if i % 2 else (255 * alpha).astype(np.uint8)
        noisy = 255 * np.clip(alpha[:, :, None] + rng.normal(0, 0.3 + i / 20, (height, width, 3)), 0, 1)
        for folder, image in {"merged": noisy, "trimaps": trimap, "alpha_copy": stored}.items():
            depth = np.uint16 if image.dtype == np.uint16 else np.uint8
            cv2.imwrite(str(tmp_path / folder / f"{i}.png"), image.astype(depth))
    return tmp_path


def matting_folder_of(folder):
    return MattingFolder(folder / "merged", folder / "trimaps", folder / "alpha_copy")


def by_command(folder, protocol):
    """What tools/evaluate.py writes of the predictions that an evaluator wrote to `folder`/pred."""
    folders = {"--pred-dir": "pred", "--label-dir": "alpha_copy", "--trimap-dir": "trimaps", "--output": "result"}
    options = [part for name, value in folders.items() for part in (name, str(folder / value))]
    assert evaluate.main([*options, "--protocol", protocol, "--workers", "1"]) == 0
    summary = json.loads((folder / "result" / "summary.json").read_text())
    assert all(row.pop("foreground") == name for name, row in summary["per_image"].items())
    return summary


@pytest.mark.parametrize("protocol", ["dim", "whole"])
def test_identical_to_the_written_files(test_set, protocol):
    evaluator = MattingEvaluator(test_set / "pred", protocol)
    loader = build_test_loader(matting_folder_of(test_set), num_workers=0)
    found = inference_on_dataset(MeanOfColours(), loader, evaluator)
    expected = by_command(test_set, protocol)
    assert evaluator.rows == expected["per_image"] and expected["images"] == 7
    assert dict(found) == {"matting": expected["averages"]}
    assert list(found["matting"]) == list(METRICS) and all(value > 0 for value in found["matting"].values())


def test_the_float_protocol_measures_what_files_cannot_hold(test_set):
    evaluator = MattingEvaluator(test_set / "pred", "float")
    dataset = matting_folder_of(test_set)
    inference_on_dataset(MeanOfColours(), build_test_loader(dataset, num_workers=0), evaluator)
    rounded = by_command(test_set, "float")["per_image"]
    for item in dataset:
        unknown = (item["trimap"][0] == 0.5).numpy()
        difference = (item["image"].mean(dim=0).double() - item["alpha"][0].double()).numpy()[unknown]
        row = evaluator.rows[item["name"]]
        assert row["SAD"] == pytest.approx(np.abs(difference).sum() / 1000, rel=1e-9)
        assert (row["SAD"] == rounded[item["name"]]["SAD"]) == (not unknown.any())
        assert row["SAD"] == pytest.approx(rounded[item["name"]]["SAD"], abs=0.5 / 255 * unknown.sum() / 1000)


def test_a_batch_is_measured_image_by_image():
    inputs = {"alpha": torch.rand(3, 1, 4, 5), "trimap": torch.randint(0, 3, (3, 1, 4, 5)) / 2, "name": ["a", "b", "c"]}
    outputs = {"pred_alpha": torch.rand(3, 1, 4, 5)}
    evaluator = MattingEvaluator()
    evaluator.process(inputs, outputs)
    for i, name in enumerate("abc"):
        stored = [(255 * alpha[i, 0].double()).round().numpy().astype(np.uint8) for alpha in
                  (outputs["pred_alpha"], inputs["alpha"])]  # fmt: skip
        assert evaluator.rows[name] == measure(*stored, (inputs["trimap"][i, 0] == 0.5).numpy())
    evaluator.reset()
    assert evaluator.rows == {}


def test_a_ground_truth_of_16_bit_rounds_as_its_file_does_for_all_values(tmp_path):
    """round(255 v / 65535) = floor((v + 128) / 257): no v lies half way, as 257 is odd."""
    values = np.arange(65536).reshape(256, 256)
    levels = (values + 128) // 257
    assert np.abs(levels * 257 - values).max() == 128
    for folder, image in {"merged": levels, "trimaps": np.full_like(values, 128)}.items():
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "all.png"), image.astype(np.uint8))
    (tmp_path / "alpha_copy").mkdir()
    cv2.imwrite(str(tmp_path / "alpha_copy" / "all.png"), values.astype(np.uint16))
    (inputs,) = build_test_loader(matting_folder_of(tmp_path), num_workers=0)
    evaluator = MattingEvaluator(tmp_path / "pred")
    evaluator.process(inputs, {"pred_alpha": torch.from_numpy(levels / 255)[None, None]})
    expected = {**dict.fromkeys(METRICS, 0), "pixels": 65536}
    assert evaluator.rows["all"] == by_command(tmp_path, "dim")["per_image"]["all"] == expected
    # That each value counts: one that is a level off is seen.
    evaluator.process(inputs, {"pred_alpha": inputs["alpha"].new_zeros(1, 1, 256, 256)})
    assert evaluator.rows["all"]["SAD"] == levels.sum() / 255 / 1000


def test_the_names_of_the_metrics_are_known_before_any_is_measured():
    evaluator = MattingEvaluator()
    evaluator.process(*make_batch(0))
    assert list(evaluator.metric_names) == list(flatten_results_dict(evaluator.evaluate()))


def test_without_ground_truth_or_images_there_is_no_number():
    inputs, outputs = make_batch(0)
    del inputs["alpha"]
    with pytest.raises(UserError, match="its ground truth under 'alpha'.*alpha_dir"):
        MattingEvaluator().process(inputs, outputs)
    with pytest.raises(UserError, match="at least one image"):
        MattingEvaluator().evaluate()


def test_without_a_pixel_to_measure_there_is_no_number():
    inputs, outputs = make_batch(0)
    inputs["trimap"] = torch.zeros_like(inputs["trimap"])
    for protocol in ("dim", "float"):
        evaluator = MattingEvaluator(protocol=protocol)
        evaluator.process(inputs, outputs)
        with pytest.raises(DataError, match="no trimap of the 1 test images has an unknown pixel"):
            evaluator.evaluate()
    whole = MattingEvaluator(protocol="whole")
    whole.process(inputs, outputs)
    assert whole.evaluate()["matting"]["SAD"] > 0


def test_the_log_says_the_protocol_and_how_many_images_have_nothing_to_measure(caplog, monkeypatch):
    # Once, whether detectron2 set this logger up before, which ends its propagation, or not.
    monkeypatch.setattr(logging.getLogger("evaluation"), "handlers", [caplog.handler])
    monkeypatch.setattr(logging.getLogger("evaluation"), "propagate", False)
    caplog.set_level(logging.INFO, "evaluation.evaluator")
    evaluator = MattingEvaluator(protocol="float")
    for seed in range(3):
        evaluator.process(*make_batch(seed))
    evaluator.evaluate()
    inputs, outputs = make_batch(3)
    inputs["trimap"] = torch.ones_like(inputs["trimap"])
    evaluator.process(inputs, outputs)
    evaluator.evaluate()
    heads, numbers = zip(*((text[0], text[2].split()) for text in map(str.splitlines, caplog.messages)), strict=True)
    description = PROTOCOLS["float"].description
    assert heads == (description, f"{description}; images without such a pixel, their errors 0: 1")
    assert [count for count, *_ in numbers] == ["3", "4"]
    assert float(numbers[0][1]) / 4 * 3 == pytest.approx(float(numbers[1][1]), abs=1e-3)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ConfigError, match="protocol must be one of dim, float, whole, got 'sad'"):
        MattingEvaluator(protocol="sad")


def evaluate_in_each_process(folder):
    """What each of two processes does: its share of 7 images, then of the 8 of a sampler that repeats one."""
    torch.set_num_threads(1)
    dataset = matting_folder_of(folder)
    loaders = {
        "uneven": build_test_loader(dataset, num_workers=0),
        "padded": DataLoader(dataset, sampler=DistributedSampler(dataset, shuffle=False)),
    }
    seen = {}
    for name, loader in loaders.items():
        evaluator = MattingEvaluator(folder / name)
        seen[name] = [inference_on_dataset(MeanOfColours(), loader, evaluator), list(evaluator.rows)]
    (folder / f"rank{comm.get_rank()}.json").write_text(json.dumps(seen))


def test_two_processes_equal_one_exactly(test_set):
    in_two_processes(evaluate_in_each_process, test_set)
    loader = build_test_loader(matting_folder_of(test_set), num_workers=0)
    expected = inference_on_dataset(MeanOfColours(), loader, MattingEvaluator())
    first, second = (json.loads((test_set / f"rank{rank}.json").read_text()) for rank in range(2))
    assert [first[name][0] for name in first] == [second[name][0] for name in first] == [expected, expected]
    assert [first["uneven"][1], second["uneven"][1]] == [["0", "2", "4", "6"], ["1", "3", "5"]]
    assert [first["padded"][1], second["padded"][1]] == [["0", "2", "4", "6"], ["1", "3", "5", "0"]]
    assert {path.stem for path in (test_set / "uneven").iterdir()} == set("0123456")
