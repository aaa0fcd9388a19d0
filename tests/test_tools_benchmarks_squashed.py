"""tools/benchmarks/squashed.py and the commands that measure it: rembg itself runs the networks."""

import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from data.sources.layouts import find_test_set
from evaluation.metrics import measure
from inference.formats.model_folder import write_model_folder
from inference.predictor import Predictor
from tests.helpers.benchmark import figures
from tests.helpers.networks import ONE_BLOCK, network_description, varied_network
from tools import benchmark
from tools.benchmarks import backbone_scale, infer, networks, squashed

SIDE_PX = 128


@pytest.fixture
def varied_folder(tmp_path):
    """A model folder of a tiny ViTDet network whose alphas vary."""
    described = network_description("ViTDet") | {"padding": "zero"}
    described["backbone"] |= ONE_BLOCK
    described["decoder"] |= dict(convstream_chans=[8, 8, 8], fusion_chans=[32, 16, 16, 8])
    tensors = varied_network("ViTDet", "zero", **ONE_BLOCK).state_dict()
    write_model_folder(tmp_path / "ours-vitmatte", described, tensors, "a test", "")
    return tmp_path / "ours-vitmatte"


def write_test_image(folder, width, height):
    """One image of smooth colours, its alpha, and a trimap with a band of unknown pixels."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x - width / 2, y - height / 2)
    shapes = {
        "image": np.dstack([x % 256, y % 256, (x + y) % 256]),
        "alpha": np.clip(255 * (0.5 - (distance - height / 4) / 20), 0, 255),
        "trimap": np.select([distance < height / 4 - 12, distance < height / 4 + 12], [255, 128], 0),
    }
    for name, pixels in shapes.items():
        (folder / name).mkdir(parents=True)
        cv2.imwrite(str(folder / name / "a.png"), pixels.astype(np.uint8))


@pytest.mark.slow
def test_rembg_gives_what_resizing_around_our_network_gives(varied_folder, tmp_path, monkeypatch, capsys):
    matting = pytest.importorskip("rembg.matting")
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("REMBG_HOME", "")  # the environment is as before after the test
    monkeypatch.setattr(matting, "_sessions", {})
    assert squashed.SQUASHED_PX == matting.INPUT_SIZE
    for module, name in ((squashed, "SQUASHED_PX"), (backbone_scale, "SQUASHED_PX"), (matting, "INPUT_SIZE")):
        monkeypatch.setattr(module, name, SIDE_PX)  # for speed
    write_test_image(tmp_path / "set", 300, 200)
    options = ["--model", str(varied_folder), "--datasets", str(tmp_path / "set"), "--device", "cpu"]
    benchmark.main(["backbone-scale", *options, "--scales", "1", "--rembg"])
    full, theirs = [[cell.strip() for cell in line.strip("|").split("|")] for line in figures(capsys)[-2:]]
    (case,) = backbone_scale.read_cases(find_test_set(str(tmp_path / "set")), None)
    predictor = Predictor.load(varied_folder, device="cpu")
    image, trimap = (np.asarray(Image.open(tmp_path / "set" / name / "a.png")) for name in ("image", "trimap"))
    size = (SIDE_PX, SIDE_PX)
    square = predictor.predict(
        np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)),
        np.asarray(Image.fromarray(trimap).resize(size, Image.Resampling.NEAREST)),
    )
    small = Image.fromarray(np.floor(255 * square).astype(np.uint8)).resize((300, 200), Image.Resampling.BILINEAR)
    unknown = case.trimap == 0.5
    expected = measure(np.asarray(small), case.alpha, unknown)
    exact = predictor.alpha(case.image, case.trimap)
    off = np.abs(np.asarray(small) / 255 - exact)[unknown]
    assert (full[3], theirs[3], full[10], theirs[4]) == ("1", "rembg", "", str(SIDE_PX))
    assert float(theirs[5]) == pytest.approx(expected["SAD"], abs=2e-3) and off.mean() > 0.02
    assert float(full[5]) == pytest.approx(measure(exact, case.alpha, unknown)["SAD"], abs=6e-4)
    largest, mean = map(float, theirs[10].split(","))
    assert largest == pytest.approx(off.max(), abs=0.005) and mean == pytest.approx(off.mean(), abs=5e-4)


def test_the_sides_of_infer_that_are_not_exact(varied_folder, monkeypatch):
    """One has its backbone on a copy; the other is read from where the networks are written."""
    image, trimap = np.zeros((32, 1040, 3), np.uint8), np.full((32, 1040), 128, np.uint8)
    image[:, ::3] = 200
    reduced = networks.load(networks.REDUCED, varied_folder.parent, "cpu", "float32")(image, trimap)()
    expected = Predictor.load(varied_folder, device="cpu", backbone_px=1024).predict(image, trimap)
    np.testing.assert_allclose(reduced, expected, rtol=0, atol=1e-6)
    assert np.abs(expected - Predictor.load(varied_folder, device="cpu").predict(image, trimap)).max() > 0.01
    monkeypatch.setattr(networks, "load_squashed", lambda home: home)
    assert networks.load(networks.SQUASHED, varied_folder.parent, "cpu", "float32") == varied_folder.parent / "rembg"


def test_rembg_is_measured_without_a_prediction_before(tmp_path, monkeypatch):
    """Its memory would stay, and only the growth would be counted."""
    predicted = []

    def load(side, *arguments):
        return lambda image, trimap: lambda: predicted.append((side, trimap.shape)) or np.zeros(trimap.shape)

    monkeypatch.setattr(infer, "load", load)
    monkeypatch.setattr(infer, "write_networks", lambda folder, sides: None)
    monkeypatch.setattr(infer, "run_fresh", lambda function, *arguments: function(*arguments))
    benchmark.main(["infer", "--sides", *infer.SIDES, "--sizes", "80x40", "--trimaps", "band", "--rounds", "1"])
    small = [side for side, shape in predicted if shape == (64, 64)]
    assert small == [side for side in infer.SIDES if side != "rembg"]
    assert [side for side, shape in predicted if shape == (40, 80)] == list(infer.SIDES)


def test_without_rembg_and_with_other_options_it_is_one_line(monkeypatch, model_folder, tmp_path):
    with pytest.raises(SystemExit, match="^benchmark.py: rembg's way runs on the CPU in float32, not compiled"):
        benchmark.main(["infer", "--sides", "ours-vitmatte", "rembg", "--precisions", "bf16"])
    monkeypatch.setitem(sys.modules, "rembg.matting", None)
    needed = r"^benchmark.py: rembg's way needs the optional package .*: pip install -r requirements-dev.txt$"
    with pytest.raises(SystemExit, match=needed):
        benchmark.main(["infer", "--sides", "ours-vitmatte", "rembg"])
    write_test_image(tmp_path / "set", 30, 20)
    with pytest.raises(SystemExit, match=needed):
        benchmark.main(["backbone-scale", "--model", str(model_folder), "--datasets", str(tmp_path / "set"), "--rembg"])
