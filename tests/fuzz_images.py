"""Damage image files of many layouts at random: each must be refused in one line that names it, or read right.

    python -m tests.fuzz_images                     # 57 layouts x 500 damages, minutes; make soak-images
    python -m tests.fuzz_images --damages 20 --layouts avif.avif,tiff_lzw.tif

Damaged files stand between good ones in batches as tools/predict.py runs them. A batch is a separate process: one that
crashes or hangs is counted with the seed of the damage, and goes on behind it. What is read is compared with another
decoder where there is one: Pillow for 8 bit, OpenCV for 16, none for EXR. Exit status: 0 none is
wrong and none crashes, 1 else.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from data.image_io.images import read_light, read_raw, read_values
from data.image_io.tiff import CONTIGUOUS, STARTS, WHITE_IS_ZERO
from inference.batch import matte_all
from inference.jobs import Job
from tests.helpers.image_files import as_rgba, encoded_by_pillow, exrs, netpbms, pngs, tiffs
from tests.helpers.paths import REPOSITORY

LAYOUTS = (
    *(f"png_{layout}.png" for layout in (
        "1_bit_1_channels", "2_bit_1_channels_trns", "4_bit_1_channels", "8_bit_1_channels", "8_bit_3_channels",
        "8_bit_3_channels_trns", "8_bit_4_channels", "8_bit_2_channels", "16_bit_1_channels", "16_bit_3_channels",
        "16_bit_4_channels", "16_bit_2_channels", "palette_8_bit_trns", "palette_1_bit", "interlaced",
    )),
    *(f"pnm{layout}" for layout in (
        "_255.pgm", "_255.ppm", "_65535.pgm", "_65535.ppm", ".pbm", "_plain_255.ppm",
    )),
    *(f"tiff_{layout}.tif" for layout in (
        "8_bit_rgb_contig_zip_little", "8_bit_rgb_separate_none_big", "16_bit_rgb_contig_zip_predictor_little",
        "16_bit_rgb_separate_zip_big", "16_bit_minisblack_contig_none_little", "16_bit_miniswhite_contig_none_big",
        "8_bit_rgb_straight_contig_none_little", "8_bit_rgb_none_contig_tiled", "palette_lzw", "lzw", "jpeg", "1_fax",
        "lzw_16", "cmyk",
    )),
    "bmp_24.bmp", "bmp_palette.bmp", "tga_24_rle.tga", "gif.gif", "webp.webp", "webp_lossy.webp", "avif.avif",
    "avif_alpha.avif", "jp2_rgb.jp2", "jpeg_rgb.jpg", "jpeg_progressive.jpg", "jpeg_cmyk.jpg", "jpeg_grey.jpg",
    *(f"exr_{layout}.exr" for layout in (
        "light_half_RGB_ZIP", "light_half_RGBA_PIZ", "light_float_RGB_NO", "grey_float_Y_RLE", "light_half_RGB_DWAA",
        "light_half_RGB_tiles", "grey_half_A_ZIP", "grey_float_A_NO", "grey_half_YA_B44",
    )),
)  # fmt: skip
HEAD = 64  # bytes that every second damage is among: most of a file is compressed pixels, whose damage is found at once
LONGEST_S = 300  # of a batch; a hang is a fault


def damage(content: bytes, layout: str, seed: int) -> bytes:
    """Change bytes, or leave out, double or insert a part; the same for the same seed."""
    rng = np.random.default_rng([zlib.crc32(layout.encode()), seed])
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(min(HEAD, len(damaged)) if rng.random() < 0.5 else len(damaged)))
        length = int(rng.integers(1, 33))
        kind = rng.integers(6)
        if kind < 2:
            damaged[place] = rng.integers(256)
        elif kind == 2:
            damaged[place] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            del damaged[place : place + length]
        elif kind == 4:
            damaged[place:place] = damaged[place : place + length]
        else:
            damaged[place:] = damaged[place:][: max(1, len(damaged) // 2)]
        if not damaged:
            break
    return with_checksums(bytes(damaged)) if seed % 2 else bytes(damaged)


def with_checksums(content: bytes) -> bytes:
    """Set the checksums of a PNG's chunks, or else all that is damaged would end there; others stay as they are."""
    if not content.startswith(b"\x89PNG"):
        return content
    parts, place = [content[:8]], 8
    while place < len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        body = content[place + 4 : end]
        parts += [content[place : place + 4], body, zlib.crc32(body).to_bytes(4, "big")]
        place = end + 4
    return b"".join(parts)


def other_decoder(content: bytes, dtype: type) -> NDArray | None:
    """Decode to (H, W, 4) uint16 with another library than `data` uses first; None where it refuses."""
    try:
        if dtype == np.uint16:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            if pixels is None or pixels.dtype != np.uint16:
                return None
            pixels = np.atleast_3d(pixels)
            if content.startswith(STARTS):
                with tifffile.TiffFile(BytesIO(content)) as file:
                    if file.pages[0].planarconfig != CONTIGUOUS:
                        return None  # OpenCV takes planes for interleaved channels
                    if file.pages[0].photometric == WHITE_IS_ZERO:  # which OpenCV does not look at
                        pixels = np.iinfo(np.uint16).max - pixels
            return as_rgba(pixels[:, :, {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]])
        image = Image.open(BytesIO(content))
        image.load()
        return as_rgba(np.asarray(ImageOps.exif_transpose(image).convert("RGBA")))
    except Exception:  # noqa: BLE001 - it is the decoder's right to fail
        return None


def read(path: Path, layout: str) -> NDArray:
    """Read a file as what its layout is for."""
    if layout.startswith("exr_light"):
        return read_light(path).values
    return read_values(path) if layout.startswith("exr_grey") else read_raw(path)


def judge(content: bytes, pixels: NDArray, layout: str) -> str:
    """Compare with another decoder: "equal", "alone" where there is none, or what differs."""
    if pixels.dtype == np.float32:
        return "alone" if np.isfinite(pixels).all() else "holds NaN or infinity"
    other = other_decoder(content, pixels.dtype.type)
    mine = as_rgba(np.atleast_3d(pixels))
    if other is None:
        return "alone"
    if other.shape != mine.shape:
        return f"shape {mine.shape[:2]}, elsewhere {other.shape[:2]}"
    differences = np.abs(mine.astype(int) - other)
    differences[:, :, :3][(mine[:, :, 3] == 0) | (other[:, :, 3] == 0)] = 0
    if "trns" in layout:
        differences = differences[:, :, :3]  # Pillow does not scale a transparent grey
    return "equal" if differences.max() <= 257 else f"differs by {differences.max() / 257:.1f} of 255"


def run_batch(layout: str, seeds: range, folder: Path) -> None:
    """Read damaged files between good ones; print the seed before each and a verdict after it, as JSON lines."""
    variants = (*pngs(), *netpbms(), *tiffs(), *encoded_by_pillow(), *exrs())
    content = next(variant.content for variant in variants if variant.name == layout)
    good, bad = folder / f"good_{layout}", folder / f"bad_{layout}"
    good.write_bytes(content)
    expected = read(good, layout)
    found: dict[Path, NDArray] = {}

    def read_one(job: Job) -> tuple[NDArray, NDArray]:
        found[job.image] = read(job.image, layout)
        return found[job.image], found[job.image]

    for seed in seeds:
        print(json.dumps({"seed": seed}), flush=True)
        damaged = damage(content, layout, seed)
        bad.write_bytes(damaged)
        found.clear()
        jobs = [Job(good, good), Job(bad, bad), Job(good.with_name(f"./{good.name}"), good)]
        steps = matte_all(jobs, read_one, lambda image, trimap: image, lambda *_: None, overlaps=False)
        (_, first), (_, failure), (_, last) = steps
        if first or last or not np.array_equal(found[good], expected):
            verdict = f"a good file beside it: {first or last}"
        elif failure:
            is_right = failure.reason.startswith(f"cannot read {bad}: ") and "\n" not in failure.reason
            verdict = "refused" if is_right else f"an odd refusal: {failure.reason}"
        else:
            verdict = judge(damaged, found[bad], layout)
        print(json.dumps({"verdict": verdict}), flush=True)


def fuzz(layout: str, num_damages: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Run all damages of a layout in batches.

    Returns: how many were refused, equal, alone or faulty, and the faults.
    """
    counts: Counter[str] = Counter()
    faults = []
    start = 0
    while start < num_damages:
        batch = ["--batch", layout, str(start), str(num_damages), str(folder)]
        command = [sys.executable, "-m", "tests.fuzz_images", *batch]
        try:
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LONGEST_S)
            output, error, status = done.stdout, done.stderr, done.returncode
        except subprocess.TimeoutExpired as ending:
            output, error, status = (ending.stdout or b"").decode(), "hangs", 1
        seed = start
        lines = [line for line in output.splitlines() if line.startswith("{")]  # OpenEXR prints its own too
        for line in map(json.loads, lines):
            seed = line.get("seed", seed)
            if "verdict" in line:
                verdict = line["verdict"]
                counts[verdict if verdict in ("refused", "equal", "alone") else "faulty"] += 1
                if verdict not in ("refused", "equal", "alone"):
                    faults.append(f"{layout} seed {seed}: {verdict}")
        if status:
            counts["crashed" if status < 0 else "raised"] += 1
            faults.append(f"{layout} seed {seed}: status {status}, {(error.splitlines() or [''])[-1]}")
        start = seed + 1
    return counts, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=500, help="of each layout")
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="names, separated by commas")
    parser.add_argument("--batch", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.batch:
        warnings.simplefilter("ignore")  # of Pillow, about damaged tags
        layout, start, end, folder = options.batch
        run_batch(layout, range(int(start), int(end)), Path(folder))
        return 0
    total: Counter[str] = Counter()
    faults = []
    layouts = options.layouts.split(",")
    with tempfile.TemporaryDirectory() as folder:
        for layout in layouts:
            counts, found = fuzz(layout, options.damages, Path(folder))
            total += counts
            faults += found
            print(f"{layout}: {dict(sorted(counts.items()))}", *found, sep="\n  ", flush=True)
    print(f"{len(layouts)} layouts x {options.damages} damages: {dict(sorted(total.items()))}")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
