"""The evaluator inside training: equal to the tool on files, to one process when run in two, and flat in memory."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from data.build import build_test_loader
from data.datasets import MattingFolder
from data.images import read_alpha, write_alpha, write_image
from data.trimap import unknown_mask
from evaluation.evaluator import MattingEvaluator
from evaluation.metrics import average, measure
from tools import evaluate

SIZES = [(7, 9), (12, 5), (6, 6), (9, 11), (8, 8)]


def make_batch(seed: int) -> tuple[dict, dict[str, Tensor]]:
    """A test batch and a prediction whose values lie anywhere between the levels of 8 bit."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 1, *SIZES[seed % len(SIZES)])
    alpha = torch.randint(0, 256, shape, generator=generator) / 255
    trimap = torch.randint(0, 3, shape, generator=generator) / 2
    inputs = {"image": torch.rand(1, 3, *shape[2:]), "alpha": alpha, "trimap": trimap, "name": [f"image_{seed}"]}
    return inputs, {"pred_alpha": torch.rand(shape, generator=generator)}


def test_equal_to_the_tool_on_written_files_to_the_last_digit(tmp_path, capsys):
    for name in ("merged", "trimaps", "alpha_copy"):
        (tmp_path / name).mkdir()
    for seed in range(5):
        inputs, _ = make_batch(seed)
        name = f"{inputs['name'][0]}.png"
        write_image(tmp_path / "merged" / name, inputs["image"][0].permute(1, 2, 0).numpy())
        write_alpha(tmp_path / "alpha_copy" / name, inputs["alpha"][0, 0].numpy())
        write_alpha(tmp_path / "trimaps" / name, inputs["trimap"][0, 0].numpy() * 256 / 255)  # 0.5 becomes 128
    dataset = MattingFolder(tmp_path / "merged", tmp_path / "trimaps", tmp_path / "alpha_copy")
    evaluator = MattingEvaluator(tmp_path / "pred")
    for inputs in build_test_loader(dataset, num_workers=0):
        evaluator.process(inputs, make_batch(int(inputs["name"][0].split("_")[1]))[1])

    folders = {"--pred-dir": "pred", "--label-dir": "alpha_copy", "--trimap-dir": "trimaps", "--output": "result.json"}
    assert evaluate.main([part for key, value in folders.items() for part in (key, str(tmp_path / value))]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert dict(evaluator.evaluate()) == {"matting": result["averages"]}
    assert evaluator.rows == result["per_image"]
    assert result["images"] == 5


def test_a_batch_is_measured_image_by_image():
    inputs = {"alpha": torch.rand(3, 1, 4, 5), "trimap": torch.randint(0, 3, (3, 1, 4, 5)) / 2, "name": ["a", "b", "c"]}
    outputs = {"pred_alpha": torch.rand(3, 1, 4, 5)}
    evaluator = MattingEvaluator()
    evaluator.process(inputs, outputs)
    for i, name in enumerate("abc"):
        prediction, truth = ((alpha[i, 0].numpy() * 255).round() for alpha in (outputs["pred_alpha"], inputs["alpha"]))
        expected = measure(prediction / 255, truth / 255, unknown_mask(inputs["trimap"])[i, 0].numpy())
        assert evaluator.rows[name] == pytest.approx(expected, rel=1e-5)
    evaluator.reset()
    assert evaluator.rows == {}


def test_predictions_are_rounded_not_truncated(tmp_path):
    inputs, outputs = make_batch(0)
    outputs["pred_alpha"] = torch.full_like(outputs["pred_alpha"], 0.999)
    inputs["alpha"] = torch.ones_like(inputs["alpha"])
    evaluator = MattingEvaluator(tmp_path)
    evaluator.process(inputs, outputs)
    assert evaluator.evaluate()["matting"] == {"SAD": 0, "MSE": 0, "MAD": 0}
    assert (read_alpha(tmp_path / "image_0.png") == 1).all()


def test_without_truth_or_without_images_there_is_no_number():
    inputs, outputs = make_batch(0)
    del inputs["alpha"]
    with pytest.raises(ValueError, match="its truth under 'alpha'.*alpha_dir"):
        MattingEvaluator().process(inputs, outputs)
    with pytest.raises(ValueError, match="at least one image"):
        MattingEvaluator().evaluate()


def test_no_picture_is_kept():
    """What the evaluator holds after a picture of 64 K pixels takes no more bytes than a name and three numbers."""
    inputs = {"alpha": torch.rand(1, 1, 256, 256), "trimap": torch.full((1, 1, 256, 256), 0.5), "name": ["large"]}
    evaluator = MattingEvaluator()
    evaluator.process(inputs, {"pred_alpha": torch.rand(1, 1, 256, 256)})
    assert evaluator.rows["large"]["SAD"] > 0
    assert len(pickle.dumps(vars(evaluator))) < 500


def evaluate_a_share(rank: int, folder: str) -> None:
    """Process images rank, rank + 2, ... of 5 and, as a padded sampler would, image 0 on both ranks."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    evaluator = MattingEvaluator()
    for seed in {0, *range(rank, 5, 2)}:
        evaluator.process(*make_batch(seed))
    Path(folder, f"{rank}.json").write_text(json.dumps(evaluator.evaluate()))
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(evaluate_a_share, args=(str(tmp_path),), nprocs=2)
    evaluator = MattingEvaluator()
    for seed in range(5):
        evaluator.process(*make_batch(seed))
    expected = dict(evaluator.evaluate())
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [expected, expected]
    assert expected["matting"] == average(evaluator.rows.values())
    assert np.isfinite(list(expected["matting"].values())).all()
