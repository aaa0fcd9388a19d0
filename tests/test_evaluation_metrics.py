"""Metrics against the MATLAB reference, against naive loops over pixels, closed forms and the awkward cases."""

import csv
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from evaluation.metrics import METRICS, PROTOCOLS, average, conn, grad, mad, measure, mse, sad, unknown_region
from runtime.errors import UserError

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
LEVELS = (0, 25, 26, 51, 102, 127, 128, 153, 178, 179, 204, 254, 255)  # at and beside thresholds
EVERY_METRIC = pytest.mark.parametrize("metric", [sad, mse, mad, grad, conn])


@st.composite
def cases(draw, kind):
    """A prediction, a ground truth and a region of one shape: noise, few levels (components, ties), or flat images."""
    shape = draw(SHAPES)
    levels = draw(st.sampled_from([range(256), LEVELS, (0, 255), (153,)]))
    values = st.sampled_from(levels)
    images = arrays.arrays(np.uint8, shape, elements=values, fill=st.nothing())
    pair = [draw(images), draw(images)]
    if kind is not np.uint8:
        share = 1 if draw(st.booleans()) else draw(st.floats(0.1, 1))  # alphas that never reach 1
        pair = [(image / 255 * share).astype(kind) for image in pair]
    return *pair, draw(arrays.arrays(np.bool_, shape))


def alphas(values):
    """An alpha as rows of Python's own floats in [0, 1]."""
    scale = 255 if values.dtype == np.uint8 else 1
    return [[value / scale for value in row] for row in values.tolist()]


def pixels(region):
    return [(y, x) for y in range(region.shape[0]) for x in range(region.shape[1]) if region[y, x]]


def naive_differences(pred_alpha, alpha, region):
    """SAD, MSE and MAD from the definition, one pixel at a time."""
    p, g = alphas(pred_alpha), alphas(alpha)
    errors = [p[y][x] - g[y][x] for y, x in pixels(region)]
    absolute, squared = sum(map(abs, errors)), sum(error**2 for error in errors)
    return {"SAD": absolute / 1000, "MSE": squared / max(len(errors), 1), "MAD": absolute / max(len(errors), 1)}


def naive_gradient_lengths(values):
    """Convolve with a 9 x 9 kernel built from its formula, pixel by pixel, borders replicated."""
    rows = alphas(values)
    low, high = min(map(min, rows)), max(map(max, rows))
    if low == high:
        return [[0.0] * len(rows[0]) for _ in rows]
    scaled = [[(value - low) / (high - low) for value in row] for row in rows]
    sigma, half = 1.4, 4
    assert half == math.ceil(sigma * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * sigma * 1e-2)))

    def gauss(t):
        return math.exp(-(t**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))

    offsets = range(-half, half + 1)
    kernel = {(dy, dx): gauss(dy) * -dx * gauss(dx) / sigma**2 for dy in offsets for dx in offsets}
    norm = math.sqrt(sum(value**2 for value in kernel.values()))
    height, width = len(rows), len(rows[0])

    def at(y, x):
        return scaled[min(max(y, 0), height - 1)][min(max(x, 0), width - 1)]

    def length(y, x):
        along_x = sum(weight * at(y - dy, x - dx) for (dy, dx), weight in kernel.items())
        along_y = sum(weight * at(y - dx, x - dy) for (dy, dx), weight in kernel.items())
        return math.hypot(along_x, along_y) / norm

    return [[length(y, x) for x in range(width)] for y in range(height)]


def naive_grad(pred_alpha, alpha, region):
    p, g = naive_gradient_lengths(pred_alpha), naive_gradient_lengths(alpha)
    return sum((p[y][x] - g[y][x]) ** 2 for y, x in pixels(region)) / 1000


def naive_largest_component(members):
    """Flood each 4-connected component from its first pixel in column order; of equal ones keep the first."""
    left, best = set(members), set()
    for start in sorted(members, key=lambda pixel: (pixel[1], pixel[0])):
        if start in left:
            component, border = set(), [start]
            while border:
                y, x = border.pop()
                if (y, x) in left:
                    left.remove((y, x))
                    component.add((y, x))
                    border += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            if len(component) > len(best):
                best = component
    return best


def naive_conn(pred_alpha, alpha, region):
    """Step through the thresholds as the definition says, comparing in whole numbers, or in the floats' own kind."""
    kind = alpha.dtype
    every = pixels(np.ones_like(region))
    level = {}
    for k in range(1, 11):
        if kind == np.uint8:
            members = {p for p in every if min(10 * int(pred_alpha[p]), 10 * int(alpha[p])) >= 255 * k}
        else:
            members = {p for p in every if min(pred_alpha[p], alpha[p]) >= kind.type(k) / kind.type(10)}
        component = naive_largest_component(members)
        for pixel in every:
            if pixel not in component:
                level.setdefault(pixel, k - 1)

    def phi(values, pixel):
        tenths = level.get(pixel, 10)
        if kind == np.uint8:
            distance = values[pixel].item() / 255 - tenths / 10
            is_far = 20 * values[pixel].item() - 510 * tenths >= 765  # 5100 (v / 255 - tenths / 10) >= 5100 x 0.15
        else:
            distance = values[pixel].item() - tenths / 10
            is_far = values[pixel] >= kind.type(2 * tenths + 3) / kind.type(20)
        return 1 - distance if is_far else 1.0

    return sum(abs(phi(pred_alpha, pixel) - phi(alpha, pixel)) for pixel in pixels(region)) / 1000


def naive(pred_alpha, alpha, region):
    """All metrics and the number of pixels, from the definitions."""
    case = (pred_alpha, alpha, region)
    return {
        **naive_differences(*case),
        "Grad": naive_grad(*case),
        "Conn": naive_conn(*case),
        "pixels": len(pixels(region)),
    }


@settings(max_examples=200)
@given(cases(np.uint8))
def test_uint8_equals_naive_loops(case):
    assert measure(*case) == pytest.approx(naive(*case), rel=1e-10, abs=1e-15)


@settings(max_examples=200)
@given(cases(np.float32))
def test_float_equals_naive_loops(case):
    measured = {**measure(*case, PROTOCOLS["float"])}
    assert measured == pytest.approx(naive(*case), rel=1e-10, abs=1e-15)


# What Octave prints for the Adobe code on the images of ../shared/metric_reference.
REFERENCE_VALUES = {
    "blobs": {"SAD": 0.252129585, "MSE": 0.000574897043, "Grad": 0.0589370541, "Conn": 0.123301975},
    "disk": {"SAD": 0.17833735, "MSE": 0.000459006144, "Grad": 0.0286729373, "Conn": 0.00204117689},
    "hair": {"SAD": 1.73696113, "MSE": 0.00401898427, "Grad": 0.900315106, "Conn": 1.3639158},
    "smoke": {"SAD": 0.656506538, "MSE": 0.000457314658, "Grad": 0.558022201, "Conn": 0.00670980476},
}


def test_values_are_those_of_the_matlab_code(metric_reference):
    """The reference sums in single precision: 1e-6, and the same integer sum of absolute differences."""
    for case, *pairs in csv.reader((metric_reference / "reference_values.csv").open()):
        stored = {name.lower(): float(value) for name, value in (pair.split("=") for pair in pairs)}
        expected = REFERENCE_VALUES[case]
        assert {name.lower(): value for name, value in expected.items()} == stored
        pred_alpha, alpha, trimap = (
            cv2.imread(str(metric_reference / folder / f"{case}.png"), cv2.IMREAD_UNCHANGED)
            for folder in ("pred", "alpha", "trimap")
        )
        measured = measure(pred_alpha, alpha, unknown_region(trimap))
        assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-6), case
        assert round(measured["SAD"] * 255_000) == round(expected["SAD"] * 255_000)


def draw_case():
    """Images of our own with what the awkward parts of the metrics ask for, 60 x 80, drawn by formula."""
    y, x = np.mgrid[:60, :80]
    disk = np.clip(14.5 - np.hypot(y - 22, x - 24), 0, 1)
    smoke = 0.55 * np.exp(-((y - 40) ** 2 + (x - 58) ** 2) / 200)
    hair = 0.8 * (np.abs((y - 20) - 6 * np.sin(x / 6)) < 0.7) * (x > 36)
    alpha = np.maximum.reduce([disk, smoke, hair])
    pred_alpha = np.clip(alpha + 0.06 * np.sin(y) * np.cos(1.7 * x) * (alpha > 0) - 0.1 * hair, 0, 1)
    rounded = [np.rint(255 * values).astype(np.uint8) for values in (pred_alpha, alpha)]
    return *rounded, (alpha > 0.02) & (alpha < 0.98)


def test_an_image_with_disk_smoke_and_hair_equals_naive_loops():
    case = draw_case()
    assert measure(*case) == pytest.approx(naive(*case), rel=1e-10)
    assert min(measure(*case).values()) > 1e-5  # each metric has something to say


def test_grad_and_conn_look_beyond_the_region():
    """A pixel far from the region changes Grad's range, and one bridge outside it changes Conn's component."""
    pred_alpha, alpha, _ = draw_case()
    pred_alpha //= 2
    region = np.zeros(alpha.shape, bool)
    region[36:44, 50:70] = True  # the smoke, cut off from the disk
    before = measure(pred_alpha, alpha, region)
    pred_alpha[0, 0] = 255
    alpha[28:48, 24:52] = 255
    pred_alpha[28:48, 24:52] = 255
    alpha[36:44, 50:70], pred_alpha[36:44, 50:70] = draw_case()[1][36:44, 50:70], draw_case()[0][36:44, 50:70] // 2
    after = measure(pred_alpha, alpha, region)
    assert after["SAD"] == before["SAD"]
    assert after["Grad"] != pytest.approx(before["Grad"], rel=0.1)
    assert after["Conn"] != pytest.approx(before["Conn"], rel=0.01)


def test_of_equal_components_the_first_in_column_order_counts():
    """Two runs of two pixels: one begins further up, the other further left, and that one belongs to the source."""
    alpha = np.zeros((4, 4), np.uint8)
    alpha[0, 2:] = alpha[3, :2] = 128
    pred_alpha = alpha.copy()
    pred_alpha[0, 2:] = pred_alpha[3, :2] = 255
    upper, lower = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    upper[0, 2:] = lower[3, :2] = True
    # lower: inside up to 0.5, l = 0.5, phi_p = 0.5, phi_g = 1. upper: l = 0, phi_p = 0, phi_g = 1 - 128 / 255
    assert conn(pred_alpha, alpha, lower) == pytest.approx(2 * 0.5 / 1000)
    assert conn(pred_alpha, alpha, upper) == pytest.approx(2 * 127 / 255 / 1000)
    # transposed, one component starts in column 0 and in row 2, the other in row 0 and column 3
    assert conn(pred_alpha.T, alpha.T, lower.T) == pytest.approx(2 * 127 / 255 / 1000)
    assert conn(pred_alpha.T, alpha.T, upper.T) == pytest.approx(2 * 0.5 / 1000)


def test_of_equal_components_in_one_column_the_upper_one_counts():
    """Eleven pixels each, both from column 0 on: the lower one climbs higher elsewhere, which is the first in rows."""
    climbs, upper = np.zeros((7, 5), bool), np.zeros((7, 5), bool)
    climbs[6], climbs[:, 4] = True, True
    upper[1:5, :3] = True
    upper[4, 2] = False
    assert climbs.sum() == upper.sum() == 11
    alpha = np.where(climbs | upper, 128, 0).astype(np.uint8)
    pred_alpha = np.where(climbs | upper, 255, 0).astype(np.uint8)
    assert conn(pred_alpha, alpha, upper) == pytest.approx(11 * 0.5 / 1000)
    assert conn(pred_alpha, alpha, climbs) == pytest.approx(11 * 127 / 255 / 1000)
    assert conn(pred_alpha, alpha, climbs) == pytest.approx(naive_conn(pred_alpha, alpha, climbs))


def test_alpha_153_of_255_is_on_the_right_side_of_the_threshold_0_6():
    """153 / 255 is 0.6: all belongs to the source up to 0.6 and both are equally connected, in 8 bit and in floats."""
    alpha = np.full((3, 3), 153, np.uint8)
    pred_alpha = np.full((3, 3), 204, np.uint8)
    everything = np.ones((3, 3), bool)
    # l = 0.6: phi_g = 1 (0 < 0.15), phi_p = 1 - 0.2
    assert conn(pred_alpha, alpha, everything) == pytest.approx(9 * 0.2e-3)
    for kind in (np.float32, np.float64):
        pair = [(values / 255).astype(kind) for values in (pred_alpha, alpha)]
        assert conn(*pair, everything) == pytest.approx(9 * 0.2e-3)


def test_an_empty_region_has_no_error():
    wrong, right, nothing = np.full((2, 3), 255, np.uint8), np.zeros((2, 3), np.uint8), np.zeros((2, 3), bool)
    assert measure(wrong, right, nothing) == {**dict.fromkeys(METRICS, 0), "pixels": 0}


def test_constant_alphas_have_no_gradient_and_no_component_leaves_all_outside():
    everything = np.ones((5, 5), bool)
    full, dark = np.full((5, 5), 255, np.uint8), np.full((5, 5), 20, np.uint8)
    assert grad(full, dark, everything) == 0
    # no pixel reaches 0.1 in both: l = 0 everywhere, phi is 0 and, 20 / 255 being below 0.15, 1
    assert conn(full, dark, everything) == pytest.approx(25 * 1.0 / 1000)
    assert conn(full, full, everything) == 0


def test_protocols_differ_in_rounding_and_region():
    pred_alpha, alpha = np.array([[0.999, 0.5]]), np.array([[1.0, 0.0]])
    unknown = np.array([[True, False]])
    assert measure(pred_alpha, alpha, unknown)["MSE"] == 0
    assert measure(pred_alpha, alpha, unknown, PROTOCOLS["float"])["MSE"] == pytest.approx(1e-6)
    whole = measure(pred_alpha, alpha, unknown, PROTOCOLS["whole"])
    assert whole["MSE"] == pytest.approx((128 / 255) ** 2 / 2) and whole["pixels"] == 2


def test_16_bit_is_rounded_by_dim_and_kept_by_float():
    pred_alpha, alpha = np.array([[65535 - 100]], np.uint16), np.array([[255]], np.uint8)
    assert measure(pred_alpha, alpha, np.ones((1, 1), bool))["MAD"] == 0
    measured = measure(pred_alpha, alpha, np.ones((1, 1), bool), PROTOCOLS["float"])
    assert measured["MAD"] == pytest.approx(100 / 65535, rel=1e-4)  # float32 holds 16 bit to 6e-8


@EVERY_METRIC
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_alpha": np.zeros((3, 2), np.uint8)}, r"got prediction \(3, 2\), ground truth \(2, 3\)"),
        ({"region": np.ones((2, 2), bool)}, "expected one shape"),
        ({"region": np.ones((2, 3), np.uint8)}, "expected a boolean region, got uint8"),
        ({"pred_alpha": np.zeros((2, 3), np.float32)}, "expected uint8 or float twice, got float32 and uint8"),
        ({"pred_alpha": np.zeros((2, 3), np.int64)}, "expected uint8 or float alphas, got int64"),
        ({"pred_alpha": np.full((2, 3), 1.5)}, r"in \[0, 1\], got 1.5 to 1.5"),
        ({"pred_alpha": np.full((2, 3), np.nan)}, r"in \[0, 1\], got nan"),
    ],
)
def test_what_does_not_fit_is_refused(metric, change, message):
    black = np.zeros((2, 3), np.uint8)
    with pytest.raises((UserError, ValueError), match=message):
        metric(**{"pred_alpha": black, "alpha": black, "region": np.ones((2, 3), bool), **change})


@pytest.mark.parametrize("value", [1.5, -0.1, np.nan])
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_no_protocol_clips_what_is_no_alpha(value, protocol):
    with pytest.raises(UserError, match=r"in \[0, 1\], got"):
        measure(np.full((2, 3), value), np.zeros((2, 3)), np.ones((2, 3), bool), protocol)


def rows_of(values):
    return [dict.fromkeys(METRICS, value) for value in values]


def test_average_counts_every_image_once_in_any_order():
    rng = np.random.default_rng(0)
    rows = rows_of(rng.random(1000) * 10.0 ** rng.integers(-8, 8, 1000))
    assert average(rows_of([1.0, 4.0])) == dict.fromkeys(METRICS, 2.5)
    assert average(rows) == average(rows[::-1]) == average(sorted(rows, key=lambda row: row["SAD"]))
    with pytest.raises(UserError, match="at least one image"):
        average([])


def test_unknown_is_128_alone():
    trimap = np.array([[0, 128, 255]], np.uint8)
    assert unknown_region(trimap).tolist() == [[False, True, False]]
    with pytest.raises(UserError, match="got 127, 129 too"):
        unknown_region(np.array([[0, 127, 129, 128]], np.uint8))
    with pytest.raises(UserError, match="expected a trimap of uint8, got float32"):
        unknown_region(np.array([[0, 0.5, 1]], np.float32))


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_where_the_arrays_lie_in_memory_does_not_show(protocol):
    """Copies give identical numbers: so do workers, other processes and the evaluator of a training run."""
    rng = np.random.default_rng(6)
    for _ in range(200):
        pred_alpha, alpha = rng.integers(0, 256, (2, *rng.integers(3, 12, 2))).astype(np.uint8)
        region = rng.random(alpha.shape) < 0.4
        rows = [measure(pred_alpha.copy(), alpha.copy(), region.copy(), protocol) for _ in range(4)]
        assert all(row == rows[0] for row in rows)
