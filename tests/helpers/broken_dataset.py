"""A small healthy data set, and one function a fault that breaks a copy of it at known files."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.checks.sets import FolderSet
from data.procedural.demo import DEMO_KINDS

SIZE_PX = 128
ORIENTATION = 0x0112
TRAINING = ("train/fg", "train/alpha", "train/rgba", "train/backgrounds")
TEST = ("test/image", "test/trimap", "test/alpha")
KINDS = list(DEMO_KINDS.values())

Expected = set[tuple[str, str]]
"""(code, file below the set's root)."""


def make_healthy(root: Path, num: int = 2) -> Path:
    """Write pairs, cut-outs, backgrounds and test images, `num` of each."""
    for folder in (*TRAINING, *TEST):
        (root / folder).mkdir(parents=True)
    for index in range(num):
        add_pair(root, f"pair{index}", index)
        colours, alpha = draw(100 + index)
        save(root / f"train/rgba/cutout{index}.png", np.dstack([colours, alpha]))
        save(root / f"train/backgrounds/photo{index}.jpg", photograph(index))
        add_test(root, f"test{index}", 200 + index)
    return root


def sets_of(root: Path) -> list[FolderSet]:
    """Name the folders as the config of this data set would."""
    fg, alpha, rgba, backgrounds = (root / folder for folder in TRAINING)
    merged, trimaps, alphas = (root / folder for folder in TEST)
    return [
        FolderSet("training", {"foreground": fg, "alpha": alpha}),
        FolderSet("training", {"foreground": rgba}),
        FolderSet("training", {"background": backgrounds}),
        FolderSet("test", {"image": merged, "trimap": trimaps, "alpha": alphas}),
    ]


@lru_cache
def draw(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a foreground, the kinds in turn: colours (H, W, 3) and alpha (H, W)."""
    drawn = KINDS[index % len(KINDS)](np.random.default_rng(index), SIZE_PX)
    colours, alpha = (np.rint(255 * values).astype(np.uint8) for values in drawn)
    return colours, alpha


def photograph(index: int) -> NDArray[np.uint8]:
    """Make an image full of detail, (H, W, 3), unlike that of any other index."""
    noise = np.random.default_rng(1000 + index).normal(0, 1, (SIZE_PX, SIZE_PX + 32, 3))
    blurred = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(128 + 50 * blurred / blurred.std(), 0, 255).astype(np.uint8)


def make_trimap(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Call unknown what is fractional, and two pixels around it."""
    unknown = cv2.dilate(((alpha > 0) & (alpha < 255)).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    return np.where(unknown, 128, alpha).astype(np.uint8)


def save(path: Path, pixels: NDArray, **options: object) -> None:
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]  # options are Pillow's


def add_pair(root: Path, name: str, index: int) -> tuple[Path, Path]:
    colours, alpha = draw(index)
    paths = root / f"train/fg/{name}.jpg", root / f"train/alpha/{name}.png"
    save(paths[0], colours, quality=95)
    save(paths[1], alpha)
    return paths


def add_test(root: Path, name: str, index: int) -> tuple[Path, Path, Path]:
    colours, alpha = draw(index)
    opacity = alpha[..., None] / 255
    merged = np.rint(opacity * colours + (1 - opacity) * photograph(index)[:, :SIZE_PX]).astype(np.uint8)
    paths = [root / folder / f"{name}.png" for folder in TEST]
    for path, pixels in zip(paths, (merged, make_trimap(alpha), alpha), strict=True):
        save(path, pixels)
    return paths[0], paths[1], paths[2]


def foreground_without_alpha(root: Path) -> Expected:
    add_pair(root, "lonely", 10)[1].unlink()
    return {("missing-partner", "train/fg/lonely.jpg")}


def alpha_without_foreground(root: Path) -> Expected:
    add_pair(root, "orphan", 11)[0].unlink()
    return {("missing-partner", "train/alpha/orphan.png")}


def test_image_without_trimap(root: Path) -> Expected:
    add_test(root, "untrimmed", 201)[1].unlink()
    return {("missing-partner", "test/image/untrimmed.png")}


def size_mismatch(root: Path) -> Expected:
    _, path = add_pair(root, "small", 12)
    save(path, draw(12)[1][:-1])
    return {("size-mismatch", "train/alpha/small.png")}


def unreadable(root: Path) -> Expected:
    (root / "train/backgrounds/page.jpg").write_text("<html>404 Not Found</html>")
    return {("unreadable", "train/backgrounds/page.jpg")}


def truncated(root: Path) -> Expected:
    paths = add_pair(root, "cut", 13)[0], add_test(root, "cut_too", 202)[2]
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return {("truncated", "train/fg/cut.jpg"), ("truncated", "test/alpha/cut_too.png")}


def zero_bytes(root: Path) -> Expected:
    add_pair(root, "nothing", 14)[1].write_bytes(b"")
    return {("zero-bytes", "train/alpha/nothing.png")}


def wrong_extension(root: Path) -> Expected:
    save(root / "train/backgrounds/really_png.jpg", photograph(15), format="PNG")
    return {("wrong-extension", "train/backgrounds/really_png.jpg")}


def unread_suffix(root: Path) -> Expected:
    (root / "train/backgrounds/index.csv").write_text("name,licence")
    (root / "train/backgrounds/.thumbnail").write_bytes((root / "train/backgrounds/photo0.jpg").read_bytes())
    save(root / "train/backgrounds/icon.ico", photograph(15))
    return {("ignored-picture", "train/backgrounds/icon.ico")}


def empty_alpha(root: Path) -> Expected:
    _, path = add_pair(root, "empty", 16)
    save(path, np.zeros_like(draw(16)[1]))
    return {("empty-alpha", "train/alpha/empty.png")}


def full_alpha(root: Path) -> Expected:
    _, path = add_pair(root, "full", 17)
    save(path, np.full_like(draw(17)[1], 255))
    return {("full-alpha", "train/alpha/full.png")}


def hard_mask(root: Path) -> Expected:
    colours, alpha = draw(18)
    mask = np.where(alpha > 127, 255, 0).astype(np.uint8)
    save(add_pair(root, "mask", 18)[1], mask)
    save(root / "train/rgba/mask_too.png", np.dstack([colours, mask]))
    return {("hard-mask", "train/alpha/mask.png"), ("hard-mask", "train/rgba/mask_too.png")}


def coloured_alpha(root: Path) -> Expected:
    _, path = add_pair(root, "pink", 19)
    pixels = np.repeat(draw(19)[1][..., None], 3, axis=2)
    pixels[:, :, 1] //= 2
    save(path, pixels)
    return {("not-grey", "train/alpha/pink.png")}


def contradicting_trimap(root: Path) -> Expected:
    _, path, _ = add_test(root, "swapped", 203)
    save(path, make_trimap(draw(208)[1]))
    return {("trimap-contradiction", "test/trimap/swapped.png")}


def trimap_without_unknown(root: Path) -> Expected:
    _, path, _ = add_test(root, "sure", 204)
    save(path, np.where(draw(204)[1] > 127, 255, 0).astype(np.uint8))
    return {("trimap-no-unknown", "test/trimap/sure.png")}


def odd_trimap(root: Path) -> Expected:
    _, path, _ = add_test(root, "odd", 205)
    trimap = make_trimap(draw(205)[1])
    trimap[trimap == 128] = 127
    save(path, trimap)
    return {("trimap-values", "test/trimap/odd.png")}


def premultiplied(root: Path) -> Expected:
    colours, alpha = draw(120)
    multiplied = np.rint(colours * (alpha[..., None] / 255)).astype(np.uint8)
    save(root / "train/rgba/multiplied.png", np.dstack([multiplied, alpha]))
    return {("premultiplied", "train/rgba/multiplied.png")}


def without_transparency(root: Path) -> Expected:
    colours, alpha = draw(121)
    save(root / "train/rgba/opaque.png", np.dstack([colours, np.full_like(alpha, 255)]))
    save(root / "train/rgba/photo.jpg", photograph(121))
    return {("no-transparency", "train/rgba/opaque.png"), ("no-transparency", "train/rgba/photo.jpg")}


def mixed_depth(root: Path) -> Expected:
    _, path = add_pair(root, "deep", 22)
    cv2.imwrite(str(path), draw(22)[1].astype(np.uint16) * 257)
    return {("mixed-depth", "train/alpha/deep.png")}


def rotated(root: Path) -> Expected:
    """A camera's image on its side, its alpha made of what an editor without EXIF showed; and one upside down."""
    exif = Image.Exif()
    for name, orientation, crop in (("side", 6, np.s_[:-32]), ("down", 3, np.s_[:])):
        colours, path = add_pair(root, name, 24)
        exif[ORIENTATION] = orientation
        image, alpha = draw(24)
        opacity = alpha[..., None] / 255
        scene = np.rint(opacity * image + (1 - opacity) * 20).astype(np.uint8)
        save(colours, scene[crop], quality=95, exif=exif)
        save(path, alpha[crop])
    return {("exif-rotation", "train/fg/side.jpg"), ("exif-rotation", "train/fg/down.jpg")}


def duplicates(root: Path) -> Expected:
    """One background is a test image under another name and format; a test foreground is trained on as a cut-out."""
    merged, _, _ = add_test(root, "seen", 206)
    Image.open(merged).save(root / "train/backgrounds/other_name.tif")
    colours, alpha = draw(206)
    save(root / "train/rgba/seen_too.webp", np.dstack([colours, alpha]), lossless=True)
    return {("duplicate", "train/backgrounds/other_name.tif"), ("duplicate", "train/rgba/seen_too.webp")}


def near_duplicate(root: Path) -> Expected:
    merged, _, _ = add_test(root, "similar", 207)
    with Image.open(merged) as image:
        image.resize((90, 90)).save(root / "train/backgrounds/smaller.jpg", quality=60)
    return {("near-duplicate", "train/backgrounds/smaller.jpg")}


def no_permission(root: Path) -> Expected:
    path, _ = add_pair(root, "secret", 25)
    path.chmod(0)
    return {("no-permission", "train/fg/secret.jpg")}


def name_in_another_case(root: Path) -> Expected:
    _, path = add_pair(root, "Case", 26)
    path.rename(path.with_name("case.png"))
    return {("name-case", "train/alpha/case.png")}


def same_name(root: Path) -> Expected:
    path, _ = add_pair(root, "twin", 27)
    save(path.with_suffix(".png"), draw(27)[0])
    return {("same-name", "train/fg/twin.png")}


FAULTY: dict[str, Callable[[Path], Expected]] = {
    breaking.__name__: breaking
    for breaking in (
        foreground_without_alpha, alpha_without_foreground, test_image_without_trimap, size_mismatch, unreadable,
        truncated, zero_bytes, wrong_extension, unread_suffix, empty_alpha, full_alpha, hard_mask, coloured_alpha,
        contradicting_trimap, trimap_without_unknown, odd_trimap, premultiplied, without_transparency, mixed_depth,
        rotated, duplicates, near_duplicate, no_permission, name_in_another_case, same_name,
    )
}  # fmt: skip


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Be someone whom files without rights are closed to."""
    if os.geteuid() != 0:
        yield
        return
    Image.init()  # nobody may not read what Pillow would still import
    os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(0)
