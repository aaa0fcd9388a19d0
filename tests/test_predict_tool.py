"""tools/predict.py: baselines against naive ones, the network against the model by hand, all that it refuses."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from scipy.ndimage import distance_transform_edt
from test_main import DEMO, REPOSITORY, overrides

from engine.config import apply_overrides, load_config
from tools import predict

SIZES = {"a": (40, 56), "b": (48, 33), "c.d": (31, 64)}


@pytest.fixture
def folders(tmp_path):
    """Three images as PNG with trimaps of odd greys as BMP, `images/NAME.png` and `trimaps/NAME.bmp`."""
    rng = np.random.default_rng(0)
    for folder in ("images", "trimaps"):
        (tmp_path / folder).mkdir()
    for name, (height, width) in SIZES.items():
        y, x = np.mgrid[:height, :width]
        distance = np.hypot(y - height / 2, x - width / 2) + 3 * np.sin(y / 3)
        greys = rng.integers(1, 255, (height, width))
        trimap = np.where(distance < 6, 255, np.where(distance > 13, 0, greys)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "trimaps" / f"{name}.bmp"), trimap)
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), rng.integers(0, 256, (height, width, 3), np.uint8))
    return tmp_path


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """`config.yaml` and random `weights.pth` of a tiny network."""
    folder = tmp_path_factory.mktemp("network")
    cfg = load_config(DEMO)
    apply_overrides(cfg, overrides(folder, folder))
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    for parameter in model.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    return folder


def arguments(folder, *more, image="images", trimap="trimaps", output="out"):
    """Command line over paths below a folder."""
    paths = {"--image": folder / image, "--trimap": folder / trimap, "--output": folder / output}
    return [*(str(part) for pair in paths.items() for part in pair), *map(str, more)]


def by_network(network):
    return ["--config-file", network / "config.yaml", "--weights", network / "weights.pth"]


def grey(path):
    """Stored grey values, which must be one 8-bit channel."""
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert picture is not None and picture.dtype == np.uint8 and picture.ndim == 2, path
    return picture


def trimaps(folder):
    return {name: grey(folder / "trimaps" / f"{name}.bmp") for name in SIZES}


def test_trivial_is_the_trimap(folders):
    assert predict.main(arguments(folders, "--baseline", "trivial", output="made/anew")) == 0
    written = {path.name for path in (folders / "made" / "anew").iterdir()}
    assert written == {f"{name}.png" for name in SIZES}
    for name, trimap in trimaps(folders).items():
        expected = np.where(np.isin(trimap, (0, 255)), trimap, 128)
        np.testing.assert_array_equal(grey(folders / "made" / "anew" / f"{name}.png"), expected)


def test_ramp_is_the_quotient_of_exact_distances(folders):
    assert predict.main(arguments(folders, "--baseline", "ramp")) == 0
    for name, trimap in trimaps(folders).items():
        to_background, to_foreground = distance_transform_edt(trimap != 0), distance_transform_edt(trimap != 255)
        exact = to_background / (to_background + to_foreground)
        written = grey(folders / "out" / f"{name}.png")
        assert np.abs(written - 255 * exact).max() <= 0.5 + 1e-3  # rounded
        assert len(np.unique(written)) > 20


def test_the_network_gives_what_the_model_by_hand_gives(folders, network, capsys):
    before = {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()}
    assert predict.main(arguments(folders, *by_network(network))) == 0
    assert capsys.readouterr().out == ""
    model = instantiate(load_config(network / "config.yaml").model)
    model.load_state_dict(torch.load(network / "weights.pth")["model"])
    model.eval()
    for name, stored in trimaps(folders).items():
        bgr = cv2.imread(str(folders / "images" / f"{name}.png"))
        trimap = np.where(stored == 0, 0, np.where(stored == 255, 1, 0.5)).astype(np.float32)
        batch = {
            "image": torch.tensor(bgr[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255,
            "trimap": torch.tensor(trimap)[None, None],
        }
        with torch.no_grad():
            alpha = model(batch)["pred_alpha"][0, 0].numpy().astype(np.float64)
        written = grey(folders / "out" / f"{name}.png")
        assert np.abs(written - 255 * alpha).max() <= 0.5 + 1e-3  # rounded, never truncated
        assert written[trimap == 0.5].std() > 5
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("way", [["tools/predict.py"], ["-m", "tools.predict"]], ids=["as a file", "as a module"])
def test_one_image_both_ways_of_running(folders, way):
    paths = {"image": "images/b.png", "trimap": "trimaps/b.bmp", "output": "new/alpha.png"}
    done = subprocess.run(
        [sys.executable, *way, *arguments(folders, "--baseline", "trivial", **paths)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in (folders / "new").iterdir()] == ["alpha.png"]
    assert set(np.unique(grey(folders / "new" / "alpha.png"))) == {0, 128, 255}


def test_a_baseline_needs_neither_detectron2_nor_a_network():
    code = "import sys; from tools import predict; print({'detectron2', 'timm', 'modeling'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def refused(folder, capsys, *more, **paths):
    """Run, see status 1 and nothing written, and give the message."""
    assert predict.main(arguments(folder, *(more or ("--baseline", "ramp")), **paths)) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("predict.py: ") and "Traceback" not in output.err
    assert not (folder / "out").exists()
    return output.err.splitlines()


def test_missing_partners_are_all_named_before_anything_is_written(folders, capsys):
    (folders / "trimaps" / "a.bmp").unlink()
    (folders / "images" / "c.d.png").unlink()
    lines = refused(folders, capsys)
    assert lines[0] == "predict.py: 2 files lack their partners. Missing:"
    assert lines[1:3] == [f"  {folders}/images/c.d.*", f"  {folders}/trimaps/a.*"]


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ({"image": "nowhere.png", "trimap": "trimaps/a.bmp"}, "nowhere.png"),
        ({"image": "images/a.png", "trimap": "nowhere.bmp"}, "nowhere.bmp"),
        ({"image": "images/a.png", "trimap": "trimaps/b.bmp"}, "a.png is 56 x 40 px but {}/trimaps/b.bmp is 33 x 48"),
        ({"image": "images/a.png"}, "expected two files or two folders"),
        ({"trimap": "trimaps/a.bmp"}, "expected two files or two folders"),
        ({"image": "nowhere", "output": "out"}, "--image {}/nowhere: no such file or folder"),
        ({"trimap": "nowhere", "output": "out"}, "--trimap {}/nowhere: no such file or folder"),
        ({"image": "text.png", "trimap": "trimaps/a.bmp"}, "cannot read {}/text.png: not a picture that Pillow knows"),
        ({"image": "images/a.png", "trimap": "mask.png"}, "mask.png holds only 0 and 1"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(folders, capsys, paths, words):
    (folders / "text.png").write_text("no picture")
    cv2.imwrite(str(folders / "mask.png"), np.eye(40, 56, dtype=np.uint8))
    lines = refused(folders, capsys, **{"output": "out/alpha.png"} | paths)
    assert len(lines) == 1 and words.format(folders) in lines[0]


@pytest.mark.parametrize("output", ["alpha", "alpha.jpg", "alpha.ppm"])
def test_an_output_that_is_no_lossless_picture_is_one_line(folders, capsys, output):
    lines = refused(folders, capsys, image="images/a.png", trimap="trimaps/a.bmp", output=output)
    assert len(lines) == 1 and f"{output}: expected the name of a lossless picture" in lines[0]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".bmp"])
def test_a_lossless_output_holds_the_exact_values(folders, suffix):
    paths = {"image": "images/a.png", "trimap": "trimaps/a.bmp", "output": f"alpha{suffix}"}
    assert predict.main(arguments(folders, "--baseline", "trivial", **paths)) == 0
    trimap = trimaps(folders)["a"]
    np.testing.assert_array_equal(grey(folders / f"alpha{suffix}"), np.where(np.isin(trimap, (0, 255)), trimap, 128))


@pytest.mark.parametrize(
    "paths",
    [
        {"output": "images"},
        {"output": "link"},
        {"image": "images/a.png", "trimap": "trimaps/a.bmp", "output": "images/a.png"},
        {"image": "images/a.png", "trimap": "trimaps/a.bmp", "output": "out/../trimaps/a.bmp"},
    ],
)
def test_an_input_is_never_overwritten(folders, capsys, paths):
    (folders / "link").symlink_to(folders / "images")
    before = {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()}
    lines = refused(folders, capsys, **paths)
    assert len(lines) == 1 and "is an input and would be overwritten" in lines[0]
    assert {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()} == before


def test_weights_and_configs_that_do_not_fit_are_one_line(folders, network, capsys):
    config, weights = network / "config.yaml", network / "weights.pth"
    lines = refused(folders, capsys, "--config-file", config, "--weights", "absent.pth")
    assert len(lines) == 1 and "no checkpoint 'absent.pth'" in lines[0]
    lines = refused(folders, capsys, "--config-file", "absent.py", "--weights", weights)
    assert len(lines) == 1 and "'absent.py'" in lines[0]
    lines = refused(folders, capsys, "--config-file", DEMO, "--weights", weights)
    assert len(lines) == 1 and "weights.pth does not fit the model" in lines[0]
    part = REPOSITORY / "configs" / "common" / "train.py"
    lines = refused(folders, capsys, "--config-file", part, "--weights", weights)
    assert len(lines) == 1 and f"{part}: expected the sections train, model, got train" in lines[0]


@pytest.mark.parametrize("device", ["nosuch", "cuda"])
def test_a_device_that_is_not_there_is_one_line(folders, network, capsys, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    lines = refused(folders, capsys, *by_network(network), "--device", device)
    assert len(lines) == 1 and f"device '{device}' cannot be used: " in lines[0]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--baseline", "rampe"],
        ["--config-file", DEMO],
        ["--weights", "w.pth"],
        ["--baseline", "ramp", "--config-file", DEMO, "--weights", "w.pth"],
        ["--baseline", "ramp", "--weights", "w.pth"],
        ["--model", "m", "--baseline", "ramp"],
        ["--model", "m", "--weights", "w.pth"],
        ["--model", "m", "--config-file", DEMO, "--weights", "w.pth"],
        ["--baseline", "ramp", "--outputs", "x"],
        ["--baseline", "ramp", "--device", "cpu"],
    ],
)
def test_wrong_usage_is_status_2(folders, capsys, more):
    with pytest.raises(SystemExit) as stop:
        predict.main(arguments(folders, *more))
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].partition(": error: ")[2]
    assert not (folders / "out").exists()


def test_every_argument_has_a_help_text_and_the_guide_is_shown(capsys):
    with pytest.raises(SystemExit) as stop:
        predict.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Exit status" in shown and "--baseline ramp" in shown
