"""Every layout of an image file is read as what its encoder put in and as ImageMagick reads it, or it is refused."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.image_io.images import DataError, read_raw
from tests.helpers.image_files import (
    Variant,
    as_rgba,
    encoded_by_imagemagick,
    encoded_by_pillow,
    imagemagick,
    netpbms,
    pngs,
    read_by_imagemagick,
    tiffs,
)

NOT_READ = (
    r"pnm_plain_(256|1023|4095|6553[45])\.|tiff_(u?int|float)\d+\.|im_tiff_(2|4|10|12|14)_bit_3|"
    r"im_tiff_1[024]_bit_1|im_cmyk_16|im_16\.jp2"
)
"""Refused with what to do, rather than read wrongly."""

OTHERWISE_IN_IMAGEMAGICK = (
    r"unspecified|tiff_\d+_bit_mini\w+_(straight|premultiplied)_separate|miniswhite_(straight|premultiplied)|tga_la|bmp_32|"
    r"avif_alpha|tiff_lab"
)
"""Version 6 takes a channel of no stated meaning and the unused byte of a BMP for alpha. It reads no alpha of AVIF and
of TGA of two channels. Of TIFFs of grey with alpha it reads planes and WhiteIsZero against the specification. Its
conversion from CIELAB takes another white: test_data_image_io_colour.py compares with littleCMS."""

STEP = 257  # of 8 bit, in 16 bit
TOLERANCES = {r"avif": 6 * STEP, r"premultiplied|associated|palette|cmyk|254|100\.": STEP, r"65534": 1}
"""Decoders of AVIF interpolate colours in their own ways; the others are roundings."""


def read_rgba16(path: Path) -> NDArray | None:
    """Read as (H, W, 4) uint16; None where it is refused."""
    try:
        return as_rgba(np.atleast_3d(read_raw(path)))
    except DataError as error:
        assert str(error).startswith(f"cannot read {path}: ") and "\n" not in str(error)
        return None


def difference(first: NDArray, second: NDArray) -> int:
    """Find the largest difference; colours count where they can be seen."""
    differences = np.abs(first.astype(int) - second)
    differences[:, :, :3][first[:, :, 3] == 0] = 0
    return int(differences.max())


def write(variants: list[Variant], folder: Path) -> list[Path]:
    paths = [folder / variant.name for variant in variants]
    assert len(set(paths)) == len(paths)
    for path, variant in zip(paths, variants, strict=True):
        path.write_bytes(variant.content)
    return paths


def test_every_layout_is_read_as_its_encoder_wrote_it_or_refused(tmp_path):
    variants = [*pngs(), *netpbms(), *tiffs(), *encoded_by_pillow()]
    faults, refused = [], set()
    for path, variant in zip(write(variants, tmp_path), variants, strict=True):
        read = read_rgba16(path)
        if read is None:
            refused.add(variant.name)
        elif variant.rgba is not None and (found := difference(variant.rgba, read)) > 0:
            faults.append(f"{variant.name}: {found}")
    print(f"{len(variants)} cells, {len(refused)} of them refused")
    assert faults == []
    assert refused == {variant.name for variant in variants if re.match(NOT_READ, variant.name)}
    assert len(variants) > 400


@pytest.mark.slow
def test_every_layout_is_read_as_imagemagick_reads_it_or_refused(tmp_path):
    if imagemagick() is None:
        pytest.skip("ImageMagick is not installed (apt-get install imagemagick)")
    (tmp_path / "made").mkdir()
    variants = [*pngs(), *netpbms(), *tiffs(), *encoded_by_pillow(), *encoded_by_imagemagick(tmp_path / "made")]
    paths = write(variants, tmp_path)
    expected = {}
    for start in range(0, len(paths), 50):  # a command of all would be too long
        expected |= read_by_imagemagick(paths[start : start + 50], tmp_path)
    assert expected.keys() >= {path for path in paths if not re.match(r"tiff_(u?int|float)", path.name)}
    faults, num_compared, refused = [], 0, set()
    for path in paths:
        read = read_rgba16(path)
        if read is None:
            refused.add(path.name)
        elif not re.search(OTHERWISE_IN_IMAGEMAGICK, path.name):
            num_compared += 1
            tolerance = max([step for name, step in TOLERANCES.items() if re.search(name, path.name)], default=0)
            if (found := difference(expected[path], read)) > tolerance:
                faults.append(f"{path.name}: {found}")
    version = subprocess.run([str(imagemagick()), "-version"], capture_output=True, text=True).stdout.splitlines()[0]
    known = [v.name for v in variants if v.rgba is not None or not re.search(OTHERWISE_IN_IMAGEMAGICK, v.name)]
    print(f"{len(paths)} cells, {num_compared} compared with {version}, {len(refused)} refused")
    print(f"{len(known)} compared with either, or refused")
    assert faults == []
    assert refused == {path.name for path in paths if re.match(NOT_READ, path.name)}
    assert num_compared > 380 and len(known) > 500
