"""tools/benchmark.py: each command prints its table on tiny sizes."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.image_io.images import read_alpha, read_image, to_uint8, write_image
from data.procedural.demo import DEMO_KINDS
from data.sources.layouts import find_test_set
from data.trimap import decode_trimap, unknown_mask, write_trimap
from engine.config.config import load_config
from evaluation.metrics import METRICS, average, measure
from inference.formats.model_folder import build
from inference.predictor import Predictor
from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import ViT
from tests.helpers.benchmark import figures
from tests.helpers.clips import picture, trimap
from tests.helpers.paths import REPOSITORY
from tools import benchmark
from tools.benchmarks import (
    backbone_scale,
    clips,
    data,
    foreground,
    infer,
    metrics,
    networks,
    ports,
    scene,
    sizes,
    train_step,
)

NUMBER = r"(\d+\.\d+)"


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(NUMBER, line)]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Measure without new processes."""
    for module in (train_step, infer):
        monkeypatch.setattr(module, "run_fresh", lambda function, *arguments: function(*arguments))


def build_tiny(side: str, checkpointed: str) -> ViTMatte:
    backbone = ViT(embed_dim=16, depth=1, num_heads=1, global_block_indexes=(0,), conv_residual_block_indexes=())
    decoder = DetailCapture(16, convstream_chans=(4, 4, 4), fusion_chans=(8, 8, 8, 8))
    return ViTMatte(backbone, decoder, MattingCriterion())


def test_train_step_prints_medians_and_the_ratios_of_the_rounds(monkeypatch, capsys):
    monkeypatch.setattr(train_step, "build", build_tiny)
    benchmark.main(["train-step", "--size-px", "64", "--batch-size", "1", "--num-steps", "1", "--rounds", "3"])
    *rounds, seconds, memory = figures(capsys)
    pattern = r"round \d (?:ours|transformers) +" + NUMBER + " s +" + NUMBER + " GB"
    assert len(rounds) == 6 and all(re.fullmatch(pattern, line) for line in rounds)
    found = {side: [numbers(line)[0] for line in rounds if side in line] for side in train_step.SIDES}
    assert numbers(seconds)[:2] == [sorted(found[side])[1] for side in train_step.SIDES]
    assert seconds.startswith("median seconds: ours ") and memory.startswith("median peak_gb: ours ")
    low, high = numbers(seconds)[3:]
    assert low <= numbers(seconds)[2] <= high


@pytest.mark.parametrize("draw", [scene.draw_matte, scene.draw_fragments])
def test_the_plain_metrics_agree_with_ours(draw):
    pred_alpha, alpha, trimap = draw(150, 100, seed=3)
    case = to_uint8(pred_alpha), to_uint8(alpha), unknown_mask(trimap)
    assert metrics.measure_plainly(*case) == pytest.approx({name: measure(*case)[name] for name in METRICS}, rel=1e-12)


def test_ports_prints_the_table_of_the_page(capsys):
    page = (REPOSITORY / "docs" / "evaluate.md").read_text()
    benchmark.main(["ports"])
    rows = [re.split(r"  +", line) for line in figures(capsys)[1:]]
    for metric, variant in dict.fromkeys((row[1], row[2]) for row in rows):
        changes = [row[5] for row in rows if row[1:3] == [metric, variant]]
        assert f"| {metric} | {variant} | {' | '.join(changes)} |" in page


def test_ports_measures_files(tmp_path, capsys):
    (_, (pred_alpha, alpha, region)), *_ = ports.drawn_cases()
    trimap = np.where(region, 128, np.where(alpha > 127, 255, 0)).astype(np.uint8)
    for folder, values in {"pred": pred_alpha, "label": alpha, "trimap": trimap}.items():
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "subject.png"), values)
    options = [part for name in ("pred", "label", "trimap") for part in (f"--{name}-dir", str(tmp_path / name))]
    benchmark.main(["ports"])
    drawn = [line.split()[1:] for line in figures(capsys) if line.startswith("subject")]
    benchmark.main(["ports", *options])
    assert [line.split()[1:] for line in figures(capsys)[1:]] == drawn
    with pytest.raises(SystemExit, match="belong together"):
        benchmark.main(["ports", *options[:2]])
    (tmp_path / "pred" / "subject.png").rename(tmp_path / "pred" / "other.png")
    with pytest.raises(SystemExit, match="subject.png has no partner"):
        benchmark.main(["ports", *options])


def test_data_prints_samples_beside_decoding(monkeypatch, capsys):
    for name, value in {
        "FOREGROUND_SIZE": (120, 90),
        "BACKGROUND_SIZE": (64, 48),
        "NUM_IMAGES": 3,
        "NUM_WARM_UP": 3,
    }.items():
        monkeypatch.setattr(data, name, value)
    benchmark.main(["data", "--rounds", "2", "--num-samples", "8", "--crop-px", "32"])
    lines = figures(capsys)
    samples, loaders = "a sample, mean (median)", "samples a second"
    heads = [f"round 1, {samples}", f"round 2, {samples}", "files", "packed"]
    assert [line.split(":")[0] for line in lines] == [
        *heads,
        f"round 1, {loaders}",
        f"round 2, {loaders}",
        "two workers",
    ]
    decoding, _, files, *_ = zip(*map(numbers, lines[:2]), strict=True)
    ratios = sorted(a / b for a, b in zip(files, decoding, strict=True))
    assert numbers(lines[2])[1:] == pytest.approx(ratios, rel=0.05)  # of milliseconds with two decimals


def test_foreground_prints_the_error_of_each_side(monkeypatch, capsys, tmp_path):
    """Over colours cut from a photograph of one colour, every estimate is right."""
    monkeypatch.setattr(foreground, "DEMO_KINDS", {"hair": DEMO_KINDS["hair"]})
    monkeypatch.delitem(foreground.ALPHAS, "closed-form")  # for speed
    tiny = ["--size-px", "64", "--num-images", "2", "--width", "64", "--height", "40"]
    Image.new("RGB", (20, 90), (200, 0, 0)).save(tmp_path / "a.png")
    benchmark.main(["foreground", *tiny])
    exact, mean, *_, cost = figures(capsys)
    assert re.fullmatch(rf"64 x 40: {NUMBER} s, {NUMBER} GB beside image and alpha", cost)
    assert numbers(exact) == numbers(mean) and len(numbers(exact)) == len(foreground.SIDES)
    own, _, ours, training_numbers = numbers(exact)
    assert ours < own and training_numbers < own
    benchmark.main(["foreground", *tiny, "--photographs", str(tmp_path)])
    assert max(numbers(figures(capsys)[0])) < 0.6


def test_infer_prints_medians_ratios_and_the_difference_of_alpha(tmp_path, monkeypatch, capsys):
    def load(side, *arguments):
        alpha = {"transformers": 0.5, "ours-vitmatte": 0.75, "ours": 0.0}[side]
        return lambda image, trimap: lambda: np.full(trimap.shape, alpha, np.float32)

    monkeypatch.setattr(infer, "load", load)
    monkeypatch.setattr(infer, "write_networks", lambda folder, sides: None)
    records, plot = tmp_path / "records.jsonl", tmp_path / "memory.png"
    for sizes_px in (["60x40", "80x40"], ["90x60"]):
        options = ["--sizes", *sizes_px, "--trimaps", "band", "--records", str(records), "--plot", str(plot)]
        benchmark.main(["infer", *options])
    *_, theirs, same, ours = (line.strip("|").split("|") for line in figures(capsys))
    assert [cell.strip() for cell in theirs[:3]] == ["90 x 60", "band", "transformers, float32"]
    assert not "".join(theirs[6:]).strip() and len(numbers(same[6])) == len(numbers(same[7])) == 3
    assert same[8].strip() == "2.5e-01, 2.5e-01 (from transformers, float32)" and not ours[8].strip()
    written = [json.loads(line) for line in records.read_text().splitlines()]
    assert len(written) == 27 and {record["width"] for record in written} == {60, 80, 90}
    assert read_image(plot).shape[2] == 3


def test_the_network_of_infer_is_that_of_the_config():
    with torch.device("meta"):
        ours = build("model", networks.DINOV3).state_dict()
    expected = sizes.build_on_meta(load_config(REPOSITORY / "configs" / "ViTMatte_S_100ep.py")).state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in expected.items()}


def write_test_set(folder):
    """Two images of 70 x 45 and 40 x 64 px, as tools/make_test_set.py writes them."""
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a": (70, 45), "b": (40, 64)}.items():
        trimap = rng.choice(np.array([0, 128, 255], np.uint8), (height, width))
        shapes = {"image": (height, width, 3), "alpha": (height, width)}
        noise = {kind: rng.integers(0, 256, shape, np.uint8) for kind, shape in shapes.items()}
        for kind, pixels in (noise | {"trimap": trimap}).items():
            (folder / kind).mkdir(exist_ok=True, parents=True)
            cv2.imwrite(str(folder / kind / f"{name}.png"), pixels)


def test_backbone_scale_prints_the_metrics_of_each_scale_and_size(tmp_path, model_folder, capsys):
    write_test_set(tmp_path / "set")
    options = ["--model", str(model_folder), "--datasets", str(tmp_path / "set"), "--device", "cpu"]
    benchmark.main(["backbone-scale", *options, "--enlarge", "1", "2", "--scales", "1", "0.5"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in figures(capsys)[4:]]
    assert [row[1:5] for row in rows] == [
        ["x1", "2", "1", "64 to 96"],
        ["x1", "2", "0.5", "32 to 48"],
        ["x2", "2", "1", "128 to 160"],
        ["x2", "2", "0.5", "64 to 80"],
    ]
    cases = list(backbone_scale.read_cases(find_test_set(str(tmp_path / "set")), None))
    for row, backbone_px in ((rows[0], ("full", "full")), (rows[1], (48, 32))):
        expected = average(
            measure(
                Predictor.load(model_folder, device="cpu", backbone_px=px).alpha(image, trimap), alpha, trimap == 0.5
            )
            for (image, trimap, alpha), px in zip(cases, backbone_px, strict=True)
        )
        assert float(row[5]) == pytest.approx(expected["SAD"], abs=6e-4)
        assert float(row[6]) == pytest.approx(1e3 * expected["MSE"], abs=6e-4)
    assert rows[0][5:7] != rows[1][5:7]


def test_an_enlarged_case_has_the_same_content():
    ramp = np.tile(np.linspace(0.2, 0.8, 12, dtype=np.float32), (8, 1))
    case = backbone_scale.Case(np.dstack([ramp] * 3), np.float32([[0, 0.5, 1] * 4] * 8), ramp)
    image, trimap, alpha = backbone_scale.enlarged(case, 2)
    assert np.array_equal(trimap, case.trimap.repeat(2, axis=0).repeat(2, axis=1))
    expected = np.interp((np.arange(24) + 0.5) / 2 - 0.5, np.arange(12), ramp[0])  # held at the borders
    np.testing.assert_allclose(alpha, np.tile(expected, (16, 1)), atol=1e-6)
    np.testing.assert_allclose(image[:, 4:-4, 0], alpha[:, 4:-4], atol=4e-3)  # OpenCV's cubic kernel ripples on a ramp


def test_backbone_scale_refuses_an_onnx_file(monkeypatch):
    monkeypatch.setattr(Predictor, "load", lambda source, **settings: Predictor(object()))
    with pytest.raises(SystemExit, match="^benchmark.py: model.onnx: an .onnx file has no reduced backbone"):
        benchmark.main(["backbone-scale", "--model", "model.onnx", "--datasets", "set"])


def test_a_killed_side_is_one_line_and_status_1(monkeypatch):
    def run_fresh(*arguments):
        raise BrokenProcessPool("a process was terminated")

    monkeypatch.setattr(train_step, "run_fresh", run_fresh)
    with pytest.raises(SystemExit, match="^benchmark.py: a process was terminated$"):
        benchmark.main(["train-step"])


def test_clips_are_matted_by_found_trimaps_by_keyframes_and_stabilised(tmp_path, monkeypatch, capsys):
    for kind in ("image", "trimap"):
        (tmp_path / kind / "one").mkdir(parents=True)
    for number in range(3):
        write_image(tmp_path / "image" / "one" / f"{number:03}.png", picture(number)[:, :, :3])
    write_trimap(tmp_path / "trimap" / "one" / "000.png", decode_trimap(trimap(0)))
    shown = SimpleNamespace(predict=lambda image, trimap: np.where(trimap == 0.5, image[:, :, 0] / 255, trimap))
    monkeypatch.setattr(clips.Predictor, "load", lambda model: shown)
    monkeypatch.setattr(clips, "trimap_of_subject", lambda image: np.full(image.shape[:2], 0.5, np.float32))
    options = ["--clips", str(tmp_path), "--output", str(tmp_path / "out"), "--stop", "2"]
    benchmark.main(["clips", *options])
    assert capsys.readouterr().out.splitlines()[-1] == "one: frames 0 to 1"
    found = {
        (name, number): read_alpha(tmp_path / "out" / name / "one" / f"{number:03}.png")
        for name in ("auto", "keyframes", "stable")
        for number in range(2)
    }
    images = [read_image(tmp_path / "image" / "one" / f"{number:03}.png")[:, :, 0] for number in range(2)]
    assert all((found["auto", number] == images[number]).all() for number in range(2))
    known = trimap(0) != 128
    assert (found["keyframes", 0][known] == decode_trimap(trimap(0))[known]).all()
    assert (found["stable", 0] == found["keyframes", 0]).all()
    assert (found["stable", 1] != found["keyframes", 1]).any()
    assert len([*(tmp_path / "out").rglob("*.png")]) == 6


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train-steps"],
        ["train-step", "--sides", "theirs"],
        ["infer", "--sizes", "512"],
        ["infer", "--sizes", "0x5"],
    ],
)
def test_wrong_usage_is_status_2(arguments):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "last"),
    [
        ("train-step --size-px 64 --batch-size 1 --num-steps 1 --rounds 1", rf"median peak_gb: ours {NUMBER} GB  .*"),
        ("infer --sizes 120x90 --trimaps unknown --rounds 1", r"\| 120 x 90 +\| unknown +\| ours, float32 .*"),
        ("metrics --width 96 --height 64 --num-images 10 --rounds 1", r"median ratio .*, no process above (\d+) MiB"),
    ],
)
def test_the_command_runs_its_sides_in_new_processes(command, last):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "tools/benchmark.py", *command.split()]
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    cpu, *lines = done.stdout.splitlines()
    assert cpu.startswith("CPU: ")
    (figure,) = re.fullmatch(last, lines[-1]).groups() or [""]
    if command.startswith("train-step"):
        assert 0.2 < float(figure) < 2  # 25 million weights with gradients and two moments: 0.3 GB
    elif command.startswith("infer"):
        found = re.search(r"(\S+), \S+ \(from transformers, float32\)", lines[-2])
        assert float(found[1]) < 1e-4, "ours differs from transformers with the same weights"
    else:
        assert int(figure) < 400, "a process that only measures loaded torch"
        assert all(re.search(r"values differ by (?:0e\+00|\de-1\d) at most", lines[row]) for row in (1, 3))
