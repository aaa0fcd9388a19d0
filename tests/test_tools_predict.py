"""tools/predict.py: baselines against naive ones, the network against the model by hand, all that it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from scipy.ndimage import distance_transform_edt

from data.image_io.images import read_image, read_raw
from data.trimap import ramp_alpha, read_trimap, trimap_from_mask
from engine.config.config import load_config
from inference.closed_form import closed_form_alpha
from inference.foreground import cut_out, estimate_foreground, over
from inference.predictor import Predictor
from tests.helpers.paths import REPOSITORY
from tests.helpers.prediction import IMAGE_SIZES, by_network, predict_arguments, read_grey, run
from tools import predict
from tools.prediction.command_line import parse

ONE = {"image": "images/a.png", "trimap": "trimaps/a.bmp", "output": None}
RAMP, TRIVIAL = ("--baseline", "ramp"), ("--baseline", "trivial")


def trimaps(folder):
    return {name: read_grey(folder / "trimaps" / f"{name}.bmp") for name in IMAGE_SIZES}


def test_trivial_is_the_trimap(image_folders):
    run(image_folders, *TRIVIAL, output="made/anew")
    written = {path.name for path in (image_folders / "made" / "anew").iterdir()}
    assert written == {f"{name}.png" for name in IMAGE_SIZES}
    for name, trimap in trimaps(image_folders).items():
        expected = np.where(np.isin(trimap, (0, 255)), trimap, 128)
        np.testing.assert_array_equal(read_grey(image_folders / "made" / "anew" / f"{name}.png"), expected)


def test_ramp_is_the_quotient_of_exact_distances(image_folders):
    run(image_folders, *RAMP)
    for name, trimap in trimaps(image_folders).items():
        to_background, to_foreground = distance_transform_edt(trimap != 0), distance_transform_edt(trimap != 255)
        exact = to_background / (to_background + to_foreground)
        written = read_grey(image_folders / "out" / f"{name}.png")
        assert np.abs(written - 255 * exact).max() <= 0.5 + 1e-3  # rounded
        assert len(np.unique(written)) > 20


def test_the_network_gives_what_the_model_by_hand_gives(image_folders, run_folder, capsys):
    before = {path: path.read_bytes() for path in image_folders.rglob("*") if path.is_file()}
    run(image_folders, *by_network(run_folder))
    assert capsys.readouterr().out == f"wrote 3 files to {image_folders / 'out'}\n"
    model = instantiate(load_config(run_folder / "config.yaml").model)
    model.load_state_dict(torch.load(run_folder / "weights.pth")["model"])
    model.eval()
    for name, stored in trimaps(image_folders).items():
        bgr = cv2.imread(str(image_folders / "images" / f"{name}.png"))
        trimap = np.where(stored == 0, 0, np.where(stored == 255, 1, 0.5)).astype(np.float32)
        batch = {
            "image": torch.tensor(bgr[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255,
            "trimap": torch.tensor(trimap)[None, None],
        }
        with torch.no_grad():
            alpha = model(batch)["pred_alpha"][0, 0].numpy().astype(np.float64)
        written = read_grey(image_folders / "out" / f"{name}.png")
        assert np.abs(written - 255 * alpha).max() <= 0.5 + 1e-3  # rounded, never truncated
        assert written[trimap == 0.5].std() > 5
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("way", [["tools/predict.py"], ["-m", "tools.predict"]], ids=["as a file", "as a module"])
def test_one_image_both_ways_of_running(image_folders, way):
    paths = {"image": "images/b.png", "trimap": "trimaps/b.bmp", "output": "new/alpha.png"}
    done = subprocess.run(
        [sys.executable, *way, *predict_arguments(image_folders, *TRIVIAL, **paths)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {image_folders / 'new' / 'alpha.png'}\n", "")
    assert [path.name for path in (image_folders / "new").iterdir()] == ["alpha.png"]


def test_a_baseline_needs_neither_torch_nor_detectron2_nor_an_optional_package(image_folders):
    code = (
        "import sys; from tools import predict; assert predict.main(sys.argv[1:]) == 0; "
        "print({'torch', 'detectron2', 'timm', 'modeling', 'pymatting', 'onnxruntime'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, *predict_arguments(image_folders, *RAMP)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.endswith("\nset()\n"), done.stderr


def test_the_shipped_network_is_the_default_where_there_is_one(image_folders, model_folder, monkeypatch, capsys):
    """From whatever folder it is called; a baseline turns it off."""
    monkeypatch.setattr("inference.default_network.SHIPPED", model_folder)
    monkeypatch.chdir(image_folders)
    expected = Predictor.load(model_folder).predict(image_folders / "images/a.png", image_folders / "trimaps/a.bmp")
    expected = np.rint(255 * expected.astype(np.float64))
    run(image_folders, "--device", "cpu", **ONE | {"output": "shipped.png"})
    np.testing.assert_array_equal(read_grey(image_folders / "shipped.png"), expected)
    assert capsys.readouterr().err == ""
    run(image_folders, *RAMP, **ONE | {"output": "ramp.png"})
    assert not np.array_equal(read_grey(image_folders / "ramp.png"), expected)


def test_without_a_network_alpha_is_the_closed_forms(image_folders, no_shipped_network, capsys):
    """And a file's result lies beside it."""
    run(image_folders, **ONE)
    assert capsys.readouterr().err == "predict.py: no network given: closed-form matting\n"
    image, trimap = read_image(image_folders / "images/a.png"), read_trimap(image_folders / "trimaps/a.bmp")
    expected = closed_form_alpha(image, trimap)
    written = read_grey(image_folders / "images" / "a_alpha.png")
    np.testing.assert_array_equal(written, np.rint(255 * expected.astype(np.float64)))
    run(image_folders, "--baseline", "closed-form", **ONE | {"output": "again.png"})
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(read_grey(image_folders / "again.png"), written)


@pytest.mark.parametrize(
    ("width", "width_px"), [(["--width-px", "7"], 7), (["--width-percent", "10"], 6), (["--width-percent", "0.1"], 1)]
)
def test_a_mask_becomes_a_trimap_by_its_width(image_folders, width, width_px):
    """Of a folder of masks, and of one; with a threshold for what is never quite 0 or 255."""
    (image_folders / "masks").mkdir()
    hard = read_grey(image_folders / "trimaps" / "a.bmp") == 255
    cv2.imwrite(str(image_folders / "masks" / "a.tif"), np.where(hard, 250, 5).astype(np.uint8))
    expected = np.ceil(255 * trimap_from_mask(hard, width_px))
    for mask, output in (("masks", "out"), ("masks/a.tif", "out2")):
        options = ["--mask", image_folders / mask, *width, "--threshold", "0.5", *TRIVIAL, "--as", "alpha"]
        run(image_folders, *options, image="images/a.png", trimap=None, output=output)
        np.testing.assert_array_equal(read_grey(image_folders / output / "a.png"), expected)


def test_a_mask_alone_becomes_a_cut_out(image_folders):
    """By a band of 3 % of the longer side, here 2 px, as with --auto; and of another size than the image."""
    hard = read_grey(image_folders / "trimaps" / "a.bmp") == 255
    expected = trimap_from_mask(hard, 2)
    for scale, name in ((1, "same"), (8, "large")):
        mask = np.kron(hard, np.ones((scale, scale), np.uint8)).astype(np.uint8) * 255
        cv2.imwrite(str(image_folders / f"{name}.png"), mask)
        options = ["--mask", image_folders / f"{name}.png", *TRIVIAL]
        run(image_folders, *options, "--overwrite", **ONE | {"trimap": None})
        written = read_raw(image_folders / "images" / "a_cutout.png")
        np.testing.assert_array_equal(written[:, :, 3], np.ceil(255 * expected))


def test_an_alpha_in_16_bit_has_more_than_256_greys(image_folders):
    run(image_folders, *RAMP, "--bits", "16", "--format", "tif", image="images/*")
    for name in IMAGE_SIZES:
        alpha = ramp_alpha(read_trimap(image_folders / "trimaps" / f"{name}.bmp"))
        written = read_raw(image_folders / "out" / f"{name}.tif")
        assert written.dtype == np.uint16
        assert np.abs(written - 65535.0 * alpha).max() <= 0.5 + 0.1  # float32's last digits


@pytest.fixture
def estimates(image_folders, monkeypatch):
    """What `estimate_foreground` was asked and gave: alpha, which must be the ramp of image "a", and colours.

    Recorded, since OpenCV's distances, and so all that follows, differ in the last digit from one array to the next.
    """
    seen = []

    def estimate(image, alpha):
        np.testing.assert_array_equal(image, read_image(image_folders / "images" / "a.png"))
        np.testing.assert_allclose(alpha, ramp_alpha(read_trimap(image_folders / "trimaps" / "a.bmp")), atol=1e-6)
        seen.append((alpha, estimate_foreground(image, alpha)))
        return seen[-1][1]

    monkeypatch.setattr("inference.foreground.estimate_foreground", estimate)
    return seen


@pytest.mark.parametrize("is_premultiplied", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_cut_out_has_the_estimated_colours(image_folders, estimates, bits, is_premultiplied):
    more = ["--as", "rgba", "--bits", bits, "--format", "png", *(["--premultiplied"] if is_premultiplied else [])]
    run(image_folders, *RAMP, *more, **ONE)
    ((alpha, foreground),) = estimates
    written = read_raw(image_folders / "images" / "a_cutout.png")
    assert written.shape == (*alpha.shape, 4) and written.dtype == (np.uint8 if bits == 8 else np.uint16)
    expected = cut_out(foreground, alpha, is_premultiplied).astype(np.float64)
    assert np.abs(written - (2**bits - 1) * expected).max() <= 0.5 + 1e-2


def test_a_tiff_says_that_its_colours_are_premultiplied(image_folders):
    """So that readers divide, and find the colours of the straight one."""
    images = []
    for more in ([], ["--premultiplied"]):
        output = image_folders / f"{len(more)}.tif"
        run(image_folders, *RAMP, "--as", "rgba", *more, **ONE | {"output": output})
        images.append(read_raw(output).astype(float))
    is_opaque_enough = images[0][:, :, 3] > 128
    assert is_opaque_enough.any() and output.read_bytes() != (image_folders / "0.tif").read_bytes()
    assert np.abs(images[0] - images[1])[is_opaque_enough].max() <= 2


@pytest.mark.parametrize(
    ("background", "expected"),
    [("#20A040", (32, 160, 64)), ("teal", (0, 128, 128)), ("rgb(0%, 100%, 0%)", (0, 255, 0)), ("beach.png", None)],
)
def test_a_composite_lies_over_a_colour_or_an_image(image_folders, estimates, monkeypatch, background, expected):
    monkeypatch.chdir(image_folders)
    cv2.imwrite("beach.png", np.random.default_rng(5).integers(0, 256, (90, 50, 3), np.uint8))
    more = [*RAMP, "--background", background, "--bits", "16"]
    run(image_folders, *more, **ONE | {"output": "new.tif"})
    ((alpha, foreground),) = estimates
    behind = np.array(expected) / 255 if expected else read_image("beach.png")
    written = read_raw("new.tif")
    assert written.dtype == np.uint16
    assert np.abs(written - 65535 * over(foreground, alpha, behind).astype(np.float64)).max() <= 0.5 + 1e-2


def test_auto_finds_the_subject_and_gives_a_cut_out(image_folders, no_shipped_network, monkeypatch, capsys):
    """Which subject is another module's; here, that its trimap is used and the width handed on."""
    widths = []

    def trimap_of_subject(image, width_percent=3, name=""):
        widths.append((width_percent, Path(name).name))
        return read_trimap(image_folders / "trimaps" / "a.bmp")

    monkeypatch.setattr("inference.auto.subject.trimap_of_subject", trimap_of_subject)
    paths = ONE | {"trimap": None}
    run(image_folders, "--auto", **paths)
    assert capsys.readouterr().err == "predict.py: no network given: closed-form matting\n"
    image = read_image(image_folders / "images" / "a.png")
    alpha = closed_form_alpha(image, read_trimap(image_folders / "trimaps" / "a.bmp"))
    expected = cut_out(estimate_foreground(image, alpha), alpha)
    assert np.abs(read_raw(image_folders / "images" / "a_cutout.png") - 255.0 * expected).max() <= 0.5 + 1e-2
    run(image_folders, "--auto", "--width-percent", "5", "--as", "alpha", **paths)
    assert (image_folders / "images" / "a_alpha.png").exists() and widths == [(3, "a.png"), (5, "a.png")]


def test_the_lemur_by_itself(matting_folder, tmp_path):
    """A photograph and nothing else: near the alpha that pymatting publishes with it, made of its own trimap."""
    lemur = matting_folder / "lemur"
    assert predict.main([str(lemur / "image" / "lemur.png"), "--auto", "--output", str(tmp_path / "cutout.png")]) == 0
    written = read_raw(tmp_path / "cutout.png")
    alpha = cv2.imread(str(lemur / "alpha_est" / "lemur.png"), cv2.IMREAD_GRAYSCALE)
    assert written.shape == (*alpha.shape, 4)
    assert np.abs(written[:, :, 3] - alpha.astype(float)).mean() < 0.02 * 255


def test_settings_of_the_network_are_handed_on(image_folders, run_folder, monkeypatch):
    given = []
    load = Predictor.load

    def recording(source, weights=None, **settings):
        given.append((source, weights, settings))
        return load(run_folder / "config.yaml", run_folder / "weights.pth", device="cpu")

    monkeypatch.setattr(Predictor, "load", recording)
    settings = ["--device", "cpu", "--precision", "bf16", "--max-memory", "2.5", "--compile", "--tile-px", "64"]
    settings += ["--tta", "flips", "--backbone-px", "512"]
    run(image_folders, "--model", "m.onnx", *settings)
    run(image_folders, *by_network(run_folder), "--overwrite")
    expected = {"device": "cpu", "precision": "bf16", "max_memory_gb": 2.5, "is_compiled": True, "tile_px": 64} | {
        "views": "flips",
        "backbone_px": 512,
    }
    none_trusted = {"trusted_modules": []}
    assert given == [
        (Path("m.onnx"), None, expected | none_trusted),
        (run_folder / "config.yaml", run_folder / "weights.pth", none_trusted),
    ]


@pytest.mark.parametrize(("word", "value"), [("full", "full"), ("512", 512)])
def test_the_backbones_size_is_full_or_pixels(word, value):
    options = parse(["a.png", "--auto", "--model", "m", "--backbone-px", word], "")
    assert options.settings == {"backbone_px": value}


@pytest.mark.parametrize("word", ["0", "-16", "0.5", "auto", ""])
def test_another_size_of_the_backbone_is_one_line(word, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["a.png", "--auto", "--model", "m", f"--backbone-px={word}"], "")
    expected = f"argument --backbone-px: must be full or a number of pixels from 1, got {word}"
    assert stop.value.code == 2 and capsys.readouterr().err.splitlines()[-1].endswith(expected)


def test_a_network_says_where_it_runs(image_folders, run_folder, caplog):
    with caplog.at_level("INFO"):
        run(image_folders, *by_network(run_folder), "--device", "cpu", **ONE)
    assert "config.yaml runs on cpu, float32" in caplog.text


def test_every_argument_has_a_help_text_and_the_guide_is_shown(capsys):
    with pytest.raises(SystemExit) as stop:
        predict.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Exit status" in shown and "photo.jpg --auto" in shown
