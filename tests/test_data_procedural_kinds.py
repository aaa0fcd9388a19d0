"""The eight kinds and two effects: areas in closed form, brute force, identities, one image at every resolution."""

import tracemalloc
from functools import cache

import cv2
import numpy as np
import pytest

from data.composition import composite
from data.procedural import KINDS, drawing, strands
from data.procedural.drawing import Drawing, ribbon
from data.procedural.drops import share_of_radius
from data.procedural.effects import defocus_kernel, filter_foreground, motion_kernel
from data.procedural.foliage import leaf
from data.procedural.glass import path_through_shell
from data.procedural.smoke import MAX_SMOKE_ALPHA
from data.procedural.strands import gather_tips, layer, shine
from data.procedural.surfaces import over, relief, resized

CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 90)), np.sin(np.linspace(0, 2 * np.pi, 90))], 1)


@cache
def draw(kind, size_px, seed=0):
    """Foreground (H, W, 3) and alpha (H, W) of a kind, drawn once for all tests."""
    return KINDS[kind](np.random.default_rng(seed), size_px)


def test_painting_in_bands_is_painting_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    shapes = Drawing(96)
    for _ in range(40):
        shapes.stroke(rng.uniform(-0.1, 1.1, (3, 2)), rng.uniform(0.002, 0.05), rng.uniform(1, 255))
    whole = shapes.resolve()
    monkeypatch.setattr(drawing, "BAND_SAMPLES", 7 * 96 * shapes.scale**2)  # 7 rows, which do not divide 96
    bands = shapes.resolve()
    assert 0.2 < whole[0].mean() < 0.95
    # cv2 rounds an edge by up to a sample, in another way where a band cuts it.
    for ours, expected in ((bands[0], whole[0]), (bands[0] * bands[1], whole[0] * whole[1])):
        np.testing.assert_allclose(ours, expected, atol=3 / shapes.scale)
        assert np.abs(ours - expected).mean() < 0.006


def test_a_drawing_of_2048_px_takes_bands_not_268_mb():
    shapes = Drawing(2048)
    shapes.fill(0.5 + 0.3 * CIRCLE, 200)
    tracemalloc.start()
    alpha, _ = shapes.resolve()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert alpha.mean() == pytest.approx(np.pi * 0.3**2, rel=2e-3)
    assert peak < 140e6


@pytest.mark.parametrize("size_px", [32, 300])
def test_a_stroke_covers_width_times_length_however_thin(size_px):
    rng = np.random.default_rng(4)
    for width in (0.002, 0.02):
        covered = expected = 0.0
        for _ in range(12):  # an edge is off by up to half a sample, whose mean is near 0
            ends = rng.uniform(0.1, 0.9, (2, 2))
            shapes = Drawing(size_px)
            shapes.stroke(np.linspace(*ends, 5), width, 255)
            covered += shapes.resolve()[0].mean()
            expected += width * np.hypot(*(ends[1] - ends[0]))
        assert covered == pytest.approx(expected, rel=0.08)
    outline = ribbon(np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([2.0, 1.0]))
    np.testing.assert_allclose(sorted(map(tuple, outline)), [(0, -1), (0, 1), (3, -0.5), (3, 0.5)])


def test_a_line_in_pieces_covers_what_it_covers_in_one_and_each_piece_has_its_shade():
    line = np.stack([np.linspace(0.1, 0.9, 13), 0.5 + 0.2 * np.sin(np.linspace(0, 3, 13))], 1)
    widths = np.linspace(0.03, 0.01, 13)[None]
    whole, pieces = Drawing(96), Drawing(96)
    whole.strokes(line[None], widths, np.array([200.0]))
    pieces.strokes(line[None], widths, np.array([[60.0, 120.0, 240.0]]))
    alpha, shade = pieces.resolve()
    np.testing.assert_allclose(alpha, whole.resolve()[0], atol=2 / pieces.scale)
    for step, expected in ((2, 60), (6, 120), (10, 240)):
        x, y = (line[step] * 96).astype(int)
        assert shade[y, x] == pytest.approx(expected / 255, abs=0.01)


def test_a_leaf_covers_the_integral_of_its_width():
    shapes = Drawing(128)
    leaf(shapes, np.array([0.1, 0.2]), 0.6, length=0.8, aspect=0.4, fullness=1.0, bend=0.0, shade=120)
    alpha, _ = shapes.resolve()
    assert alpha.mean() == pytest.approx(0.8**2 * 0.4 * 2 / np.pi, rel=0.015)  # mean of sin over half a turn: 2 / pi


def test_holes_and_several_outlines_follow_the_odd_even_rule():
    shapes = Drawing(64)
    shapes.fill([0.5 + 0.4 * CIRCLE, 0.5 + 0.2 * CIRCLE], 100)
    shapes.fill(0.5 + 0.05 * CIRCLE + [0.3, 0], 0)
    expected = np.pi * (0.4**2 - 0.2**2 - 0.05**2)
    alpha, shade = shapes.resolve()
    assert alpha.mean() == pytest.approx(expected, rel=0.01)
    np.testing.assert_allclose(shade[alpha > 0], 100 / 255, rtol=1e-5)


def test_the_path_through_a_shell_is_what_walking_along_it_counts():
    outer, inner = 0.9, 0.6
    along = (np.arange(200_000) + 0.5) / 100_000 - 1
    for across in (0.0, 0.3, 0.6, 0.75, 0.95):
        radius = np.hypot(across, along)
        walked = ((radius < outer) & (radius > inner)).mean() * 2
        assert path_through_shell(np.array(across), np.array(outer), np.array(inner)) == pytest.approx(walked, abs=2e-4)


def test_the_share_of_the_radius_in_a_drop_is_that_of_its_ellipse():
    rng = np.random.default_rng(2)
    x, y = rng.uniform(-1.5, 1.5, (2, 500))
    expected = np.minimum(np.hypot(x / 1.2, y / 0.8), 1)
    np.testing.assert_allclose(share_of_radius(CIRCLE * [1.2, 0.8], x, y), expected, atol=3e-3)


def test_layers_lie_over_each_other_in_order():
    rng = np.random.default_rng(3)
    layers = [(rng.random((4, 5)), rng.random((4, 5, 3))) for _ in range(3)]
    background = seen = rng.random((4, 5, 3))
    for alpha, colour in layers:
        seen = composite(alpha[..., None], colour, seen)
    colour, alpha = over(layers)
    np.testing.assert_allclose(composite(alpha[..., None], colour, background), seen, atol=1e-6)


def test_the_strands_of_a_lock_meet_at_its_tip_or_stay_as_far_apart():
    guides = np.cumsum(np.random.default_rng(6).normal(0, 0.1, (3, 9, 3)), 1)
    locks = gather_tips(np.random.default_rng(7), guides, 200, 0.05, np.array([1.0, 0.5, 0.0]), (1.0, 1.0))
    apart = (locks.reshape(3, 200, 9, 3) - guides[:, None]).std(1)
    np.testing.assert_allclose(apart[:, 0], 0.05, rtol=0.25)
    for lock, left in enumerate((0.0, 0.5, 1.0)):
        np.testing.assert_allclose(apart[lock, -1], left * apart[lock, 0], atol=1e-9)
    short = gather_tips(np.random.default_rng(7), guides, 4, 0.0, np.zeros(3), (0.5, 0.5))
    np.testing.assert_allclose(short[:, -1], np.repeat(guides[:, 4], 4, 0))  # half of the 8 steps


def test_a_strand_shines_where_it_lies_across_the_light_and_is_dark_along_it():
    angle = np.linspace(0, np.pi, 181)  # an arch over the camera's axis, from lower left to lower right
    arch = np.stack([-np.cos(angle), -np.sin(angle), 0 * angle], 1)[None]
    normals = arch
    for degrees in (60, 90, 130):  # light from the side of the arch's place at this angle
        light = arch[0, degrees] * np.array([1, 1, 0])
        diffuse, specular = shine(arch, normals, light, np.zeros(1), 40.0)
        assert abs(specular[0].argmax() - degrees) <= 1 and specular.max() > 0.999
        assert specular[0, (degrees + 60) % 180] < 0.02
        assert diffuse[0].argmax() == pytest.approx(degrees, abs=1)
        assert diffuse[0, (degrees + 90) % 180] < 0.05
    tilted = shine(arch, normals, arch[0, 90], np.array([0.4]), 40.0)[1][0].argmax()
    assert abs(tilted - 90) == pytest.approx(np.rad2deg(np.arctan(0.4)), abs=1.5)


def test_a_layer_out_of_focus_is_the_blurred_composite():
    drawing = Drawing(96)
    for step in range(9):
        drawing.stroke(np.array([[0.3, 0.1 * step], [0.7, 0.1 * step + 0.1]]), 0.004, 20 + 25 * step)
    stops = np.random.default_rng(8).random((4, 3))
    skin = (np.zeros((96, 96), np.float32), np.ones((96, 96, 3), np.float32))
    skin[0][30:60, 30:60] = 1
    background = np.array([0.1, 0.8, 0.4], np.float32)
    alpha, colour = layer(drawing, stops, 0.0, skin)
    kernel = defocus_kernel(0.06 * 96)
    expected = cv2.filter2D(composite(alpha[..., None], colour, background), cv2.CV_32F, kernel)
    soft, blurred = layer(drawing, stops, 0.06, skin)
    seen = composite(soft[..., None], blurred, background)[8:-8, 8:-8]
    np.testing.assert_allclose(seen, expected[8:-8, 8:-8], atol=2e-4)
    assert ((soft > 0) & (soft < 1)).sum() > 1.5 * ((alpha > 0) & (alpha < 1)).sum()


def test_a_cushion_is_lit_on_the_side_of_the_light_and_as_a_plane_in_the_middle():
    alpha = np.zeros((200, 200), np.float32)
    alpha[20:180, 20:180] = 1
    light = np.array([0.6, 0.0, 0.8])
    lit = relief(alpha, light, np.zeros_like(alpha))
    assert lit[100, 100] == pytest.approx(0.3 + 0.7 * 0.8, abs=1e-3)
    assert lit[100, 165] > lit[100, 100] + 0.03 and lit[100, 30] < lit[100, 100] - 0.2
    np.testing.assert_allclose(lit, lit[::-1], atol=1e-5)  # the light comes from the right
    coarse = resized(relief(resized(alpha, 100), light, np.zeros((100, 100), np.float32)), 200)
    assert np.abs(coarse - lit)[alpha > 0].mean() < 0.02


def test_kernels_have_the_moments_of_a_disc_and_of_a_line():
    for diameter in (4.3, 15.0):
        kernel = defocus_kernel(diameter)
        offset = np.arange(len(kernel)) - len(kernel) // 2
        # variance of a disc along an axis, d^2 / 16, and of a pixel, 1 / 12
        assert (kernel * offset**2).sum() == pytest.approx(diameter**2 / 16 + 1 / 12, rel=0.03)
    for length, angle in ((9.0, 0.3), (20.0, 1.1)):
        kernel = motion_kernel(length, angle)
        y, x = np.mgrid[: len(kernel), : len(kernel)] - len(kernel) // 2
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        assert (kernel * along**2).sum() == pytest.approx(length**2 / 12 + 1 / 12, rel=0.03)
        assert (kernel * across**2).sum() == pytest.approx(1 / 12 + 1 / 12, rel=0.1)  # width within a sample of 16
        np.testing.assert_array_equal(kernel, kernel[::-1, ::-1])
    for kernel in (defocus_kernel(1.0), motion_kernel(1.0, 0.0)):  # no more than a pixel: nothing changes
        np.testing.assert_allclose(kernel.max(), 1, atol=1e-6)


@pytest.mark.parametrize("kernel", [defocus_kernel(11.0), motion_kernel(17.0, 0.7)], ids=["defocus", "motion"])
@pytest.mark.parametrize("kind", ["hair", "drops"])
def test_a_filtered_foreground_over_a_plain_background_is_the_filtered_composite(kind, kernel):
    foreground, alpha = draw(kind, 128)
    background = np.array([0.9, 0.2, 0.5], np.float32)
    seen = composite(alpha[..., None], foreground, background)
    expected = cv2.filter2D(seen, cv2.CV_32F, kernel, borderType=cv2.BORDER_REPLICATE)
    blurred, soft = filter_foreground(foreground, alpha, kernel)
    np.testing.assert_allclose(composite(soft[..., None], blurred, background), expected, atol=2e-4)
    assert ((soft > 0) & (soft < 1)).mean() > 1.3 * ((alpha > 0) & (alpha < 1)).mean()
    assert (soft == 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_one_image_at_every_resolution(kind):
    alphas = {side: draw(kind, side)[1] for side in (64, 128, 512)}
    for side, alpha in alphas.items():
        assert alpha.shape == (side, side)
        assert alpha.mean() == pytest.approx(alphas[512].mean(), rel=0.05)
        shrunk = cv2.resize(alphas[512], (side, side), interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk - alpha).mean() < 0.012
    colours = [draw(kind, side)[0] * alphas[side][..., None] for side in (128, 512)]
    assert np.abs(cv2.resize(colours[1], (128, 128), interpolation=cv2.INTER_AREA) - colours[0]).mean() < 0.006
    assert np.abs(draw(kind, 128, seed=1)[1] - alphas[128]).mean() > 0.02


# kind: least share of transparent pixels, of opaque ones and of those between, and largest share of opaque ones
NATURES = {
    "hair": (0.3, 0.08, 0.08, 0.5), "fur": (0.4, 0.15, 0.03, 0.5), "feathers": (0.5, 0.02, 0.02, 0.3),
    "foliage": (0.4, 0.03, 0.02, 0.5), "lace": (0.3, 0.01, 0.03, 0.6), "smoke": (0.2, 0, 0.1, 0),
    "glass": (0.4, 0, 0.05, 0.1), "drops": (0.4, 0, 0.04, 0.05),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_as_clear_and_as_dense_as_its_nature(kind):
    transparent, opaque, between, most_opaque = NATURES[kind]
    for seed in range(2):
        foreground, alpha = draw(kind, 128, seed)
        assert foreground.shape == (128, 128, 3) and foreground.dtype == alpha.dtype == np.float32
        for values in (foreground, alpha):
            assert values.min() >= 0 and values.max() <= 1 and np.isfinite(values).all()
        assert (alpha < 0.005).mean() > transparent
        assert opaque <= (alpha > 0.995).mean() <= most_opaque
        assert ((alpha > 0.02) & (alpha < 0.98)).mean() > between
    if kind == "smoke":
        assert alpha.max() <= MAX_SMOKE_ALPHA


@pytest.mark.parametrize("kind", ["hair", "fur"])
def test_strands_are_thinner_than_a_pixel_and_fade_away_from_the_body(kind, monkeypatch):
    painted, strokes = [], drawing.Drawing.strokes

    def record(self, lines, widths, shades):
        painted.append(512 * widths)
        strokes(self, lines, widths, shades)

    monkeypatch.setattr(drawing.Drawing, "strokes", record)
    faint, far = [], []
    for seed in range(4):
        alpha = KINDS[kind](np.random.default_rng([9, seed]), 256)[1]
        body = cv2.morphologyEx((alpha > 0.98).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5)))
        away = cv2.dilate(body, np.ones((7, 7))) == 0
        faint.append(((alpha > 0.02) & (alpha < 0.5) & away).mean())
        far.append((alpha[away] > 0.9).sum() / (alpha[away] > 0.02).sum())
    widths = np.concatenate([each.ravel() for each in painted])
    assert 0.3 < np.median(widths) < 0.9 and np.quantile(widths, 0.99) < 2.2  # in pixels of a 512 px image
    at_tips = np.concatenate([each[:, -1] for each in painted])
    assert np.median(at_tips) < 0.4 * np.median(np.concatenate([each[:, 0] for each in painted]))
    assert np.mean(faint) > (0.03 if kind == "hair" else 0.01)
    assert np.mean(far) < 0.25


@pytest.mark.parametrize("kind", ["hair", "fur"])
def test_some_images_are_sharp_and_others_have_a_layer_out_of_focus(kind, monkeypatch):
    diameters = []
    monkeypatch.setattr(strands, "defocus_kernel", lambda px: diameters.append(px) or defocus_kernel(px))
    blurred = []
    for seed in range(8):
        diameters.clear()
        KINDS[kind](np.random.default_rng([10, seed]), 128)
        blurred.append(len(diameters))
    assert set(blurred) == {0, 1}  # one of two layers: soft alphas beside sharp ones


@pytest.mark.parametrize("kind", ["hair", "fur", "feathers", "foliage", "lace"])
def test_colours_are_not_premultiplied(kind):
    foreground, alpha = draw(kind, 128)
    brightness = foreground.mean(2)
    faint = brightness[(alpha > 0) & (alpha < 0.3)].mean()  # premultiplied, it would be below 0.3 of the opaque ones
    assert faint > 0.6 * brightness[alpha == 1].mean()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_2048_px_is_the_one_of_512(kind):
    small, large = draw(kind, 512)[1], KINDS[kind](np.random.default_rng(0), 2048)[1]
    assert np.abs(cv2.resize(large, (512, 512), interpolation=cv2.INTER_AREA) - small).mean() < 0.01
