"""inference/closed_form.py: the equations solved densely, exact composites, full size against reduced."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from scipy.sparse import csc_matrix

from data.image_io.images import DataError, read_alpha, read_image, to_uint8
from data.trimap import encode_trimap, ramp_alpha, read_trimap
from inference import closed_form as classical
from inference.closed_form import closed_form_alpha
from runtime.optional_packages import MissingExtraError


def scene(height, width, seed=0):
    """Image, trimap and true alpha of a soft disc of one colour over another: alpha is linear in colour everywhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 2) + 2 * np.sin(x / 3)
    edge = min(height, width) / 4
    alpha = np.clip((edge - distance) / 8 + 0.5, 0, 1).astype(np.float32)
    foreground, background = rng.random((2, 3), np.float32)
    image = alpha[:, :, None] * foreground + (1 - alpha[:, :, None]) * background
    trimap = np.where(distance < edge - 7, 1, np.where(distance > edge + 7, 0, 0.5)).astype(np.float32)
    return image, trimap, alpha


def dense_closed_form(image, trimap, regularisation=1e-7):
    """Equation 5 of the paper, window by window, and a dense solver."""
    height, width = trimap.shape
    colours = image.reshape(-1, 3).astype(np.float64)
    number = np.arange(height * width).reshape(height, width)
    laplacian = np.zeros((height * width,) * 2)
    for top in range(height - 2):
        for left in range(width - 2):
            window = number[top : top + 3, left : left + 3].ravel()
            centred = colours[window] - colours[window].mean(axis=0)
            covariance = (centred.T @ centred + regularisation * np.eye(3)) / 9
            laplacian[np.ix_(window, window)] += np.eye(9) - (1 + centred @ np.linalg.inv(covariance) @ centred.T) / 9
    unknown = (trimap == 0.5).ravel()
    alpha = trimap.ravel().astype(np.float64)
    right = -laplacian[np.ix_(unknown, ~unknown)] @ alpha[~unknown]
    alpha[unknown] = np.linalg.solve(laplacian[np.ix_(unknown, unknown)], right)
    return alpha.reshape(trimap.shape).clip(0, 1)


def test_the_equations_are_those_of_the_paper(monkeypatch):
    """Of the whole image, though only a part around the unknown pixels is solved."""
    monkeypatch.setattr(classical, "MARGIN_PX", 2)
    rng = np.random.default_rng(3)
    image, trimap, _ = scene(24, 31)
    image = cv2.GaussianBlur(rng.random(image.shape), (0, 0), 2).astype(np.float32)
    trimap[:, 20:] = 0
    given = image.copy(), trimap.copy()
    alpha = closed_form_alpha(image, trimap)
    assert alpha.dtype == np.float32 and (trimap == 0.5)[:, :-4].any() and not (trimap == 0.5)[:, 20:].any()
    np.testing.assert_allclose(alpha, dense_closed_form(image, trimap), atol=1e-4)
    assert alpha[trimap == 0.5].std() > 0.1
    np.testing.assert_array_equal(alpha[trimap != 0.5], trimap[trimap != 0.5])
    np.testing.assert_array_equal(image, given[0])
    np.testing.assert_array_equal(trimap, given[1])


def test_alpha_that_is_linear_in_colour_is_found():
    image, trimap, alpha = scene(90, 70)
    np.testing.assert_allclose(closed_form_alpha(image, trimap), alpha, atol=2e-3)


def test_arrays_of_uint8_give_what_floats_give():
    image, trimap, _ = scene(40, 50)
    pixels = to_uint8(image)
    expected = closed_form_alpha(pixels / np.float32(255), trimap)
    np.testing.assert_array_equal(closed_form_alpha(pixels, encode_trimap(trimap)), expected)


@pytest.mark.parametrize(
    ("image", "trimap", "words"),
    [
        (np.full((9, 9, 3), 255.0), np.full((9, 9), 0.5), r"expected the image in \[0, 1\], got 255 to 255: scale it"),
        (np.ones((9, 9, 3)), np.full((9, 9), 0.3), "that are not 0, 0.5 or 1"),
        (np.ones((9, 9, 3)), np.full((9, 8), 0.5), r"image and trimap of one size, got \(9, 9, 3\) and \(9, 8\)"),
    ],
    ids=["image of 0 to 255", "soft mask", "sizes"],
)
def test_arrays_that_mean_something_else_are_an_error(image, trimap, words):
    with pytest.raises(DataError, match=words):
        closed_form_alpha(image, trimap)


def test_what_is_solved_reduced_follows_the_colours_of_the_full_size(monkeypatch):
    """Sharper than enlarging the reduced alpha could be."""
    image, trimap, alpha = scene(150, 181)
    unknown = trimap == 0.5
    monkeypatch.setattr(classical, "MAX_SOLVED_PIXELS", 2_000)
    found = closed_form_alpha(image, trimap)
    reduced = cv2.resize(cv2.resize(alpha, (50, 41), interpolation=cv2.INTER_AREA), (181, 150))
    error, blurred = (np.abs(values - alpha)[unknown].mean() for values in (found, reduced))
    assert error < 0.01 < 0.02 < blurred
    np.testing.assert_array_equal(found[~unknown], trimap[~unknown])


def test_no_more_is_solved_than_stated_and_standard_output_stays(monkeypatch):
    solved, output = [], sys.stdout

    def estimate_alpha_cf(image, trimap, preconditioner):
        assert preconditioner is classical._silent_ichol
        assert sys.stdout is output  # it belongs to all threads
        solved.append((image.shape[:2], trimap.shape))
        return trimap

    monkeypatch.setattr(classical, "import_extra", lambda *_: SimpleNamespace(estimate_alpha_cf=estimate_alpha_cf))
    monkeypatch.setattr(classical, "MAX_SOLVED_PIXELS", 5_000)
    for size in ((60, 60), (150, 181), (30, 400)):
        image, trimap, _ = scene(*size)
        trimap[:, 5:-5] = np.where(trimap[:, 5:-5] == 0, 0.5, trimap[:, 5:-5])
        closed_form_alpha(image, trimap)
    assert solved == [((60, 60),) * 2, ((64, 77),) * 2, ((19, 258),) * 2]


def test_the_preconditioner_is_pymattings_but_prints_nothing(capsys):
    pymatting = pytest.importorskip("pymatting")
    indefinite, vector = csc_matrix([[1.0, 2.0], [2.0, 1.0]]), np.array([1.0, 3.0])
    expected = pymatting.ichol(indefinite)(vector)
    assert "PERFORMANCE WARNING" in capsys.readouterr().out
    np.testing.assert_array_equal(classical._silent_ichol(indefinite)(vector), expected)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("known", "absent"), [((), "foreground and no background"), ((0,), "foreground"), ((1,), "background")]
)
def test_without_a_known_side_alpha_is_the_ramps_and_said_so(caplog, known, absent):
    image = np.random.default_rng(0).random((9, 12, 3), np.float32)
    trimap = np.full((9, 12), 0.5, np.float32)
    for value in known:
        trimap[:2, :3] = value
    np.testing.assert_array_equal(closed_form_alpha(image, trimap), ramp_alpha(trimap))
    (record,) = caplog.records
    assert record.name == "inference.closed_form" and f"knows no {absent} near" in record.getMessage()


@pytest.mark.parametrize("shape", [(1, 30), (40, 2), (1, 1)])
def test_too_narrow_for_a_window_alpha_is_the_ramps(shape):
    image = np.random.default_rng(0).random((*shape, 3), np.float32)
    trimap = np.full(shape, 0.5, np.float32)
    trimap.flat[0], trimap.flat[-1] = 0, 1
    np.testing.assert_array_equal(closed_form_alpha(image, trimap), ramp_alpha(trimap))


def test_a_trimap_without_unknown_is_alpha_and_needs_no_package(monkeypatch):
    def missing(name, purpose):
        raise MissingExtraError(f"{purpose} needs {name}")

    monkeypatch.setattr(classical, "import_extra", missing)
    image, trimap, _ = scene(40, 40)
    known = (trimap > 0.5).astype(np.float32)
    np.testing.assert_array_equal(closed_form_alpha(image, known), known)
    with pytest.raises(MissingExtraError, match="closed-form matting needs pymatting"):
        closed_form_alpha(image, trimap)


def test_real_photographs_reduced_and_not(matting_folder, monkeypatch):
    """Against true alphas: far below the ramp's error, and solved at a quarter of the pixels hardly above the full."""
    folder = matting_folder / "alphamatting"
    errors = {"ramp": 0.0, "full": 0.0, "reduced": 0.0, "enlarged": 0.0}
    for name in ("GT01", "GT12", "GT19"):
        image, trimap = read_image(folder / "image" / f"{name}.png"), read_trimap(folder / "trimap1" / f"{name}.png")
        exact = read_alpha(folder / "alpha" / f"{name}.png")
        found = {"ramp": ramp_alpha(trimap), "full": closed_form_alpha(image, trimap)}
        with monkeypatch.context() as patch:
            box = trimap[classical._surroundings(trimap == 0.5)]
            patch.setattr(classical, "MAX_SOLVED_PIXELS", box.size // 4)
            found["reduced"] = closed_form_alpha(image, trimap)
        small = cv2.resize(found["full"], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        found["enlarged"] = cv2.resize(small, trimap.shape[::-1])
        for way, alpha in found.items():
            errors[way] += np.abs(alpha - exact)[trimap == 0.5].sum() / 3000
    assert errors["full"] < 0.25 * errors["ramp"]
    assert errors["full"] < errors["reduced"] < 1.15 * errors["full"]
    assert errors["enlarged"] > 1.4 * errors["full"]
