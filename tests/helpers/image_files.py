"""Image files of every layout that is read or refused, with the pixels that they hold."""

import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import OpenEXR
import tifffile
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 19, 26
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of the PNG format
SHAPES = {"grey": 1, "grey_alpha": 2, "rgb": 3, "rgba": 4}


class Variant(NamedTuple):
    """A file.

    Attributes:
        name: says what it is, and ends in its suffix.
        content: all bytes.
        rgba: (H, W, 4) uint16, what it holds, 8 bit times 257; None where its encoder loses something.
        is_premultiplied: colours where alpha is 0 mean nothing.
    """

    name: str
    content: bytes
    rgba: NDArray | None = None
    is_premultiplied: bool = False


def draw(channels: int, bits: int = 8) -> NDArray:
    """Draw (H, W, channels) of noise on a slope; the last of 2 or 4 channels is alpha, with regions of 0 and 1."""
    rng = np.random.default_rng(channels)
    slope = np.add.outer(np.linspace(0, 0.6, HEIGHT), np.linspace(0, 0.3, WIDTH))[:, :, None]
    values = slope + 0.1 * rng.random((HEIGHT, WIDTH, channels))
    if channels in (2, 4):
        values[:4, :, -1], values[-4:, :, -1] = 0, 1
    return np.rint(values * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def as_rgba(samples: NDArray, full_scale: int | None = None) -> NDArray:
    """Bring (H, W, 1 to 4) samples to (H, W, 4) of 16 bit."""
    scale = 65535 / (full_scale or np.iinfo(samples.dtype).max)
    values = np.rint(samples * scale).astype(np.uint16)
    channels = values.shape[2]
    colours = values[:, :, :3] if channels > 2 else values[:, :, [0, 0, 0]]
    alpha = values[:, :, -1] if channels in (2, 4) else np.full(values.shape[:2], 65535, np.uint16)
    return np.dstack([colours, alpha])


def png(samples: NDArray, colour_type: int, bits: int, chunks: dict[bytes, bytes] | None = None) -> bytes:
    """Write a PNG chunk by chunk, independent of the libraries under test; `chunks` go between header and pixels."""
    height, width = samples.shape[:2]
    if bits < 8:
        rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()) for row in samples[:, :, 0]]
    else:
        rows = list(samples.astype(samples.dtype.newbyteorder(">")).reshape(height, -1))
    body = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)),
        *(chunks or {}).items(),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in body]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pngs() -> Iterator[Variant]:
    """PNGs of every depth and colour type, with and without a transparent colour."""
    for bits, colour_type, channels in [
        *((bits, GREY, 1) for bits in (1, 2, 4, 8, 16)),
        *((bits, kind, n) for bits in (8, 16) for kind, n in ((RGB, 3), (GREY_ALPHA, 2), (RGBA, 4))),
    ]:
        samples = draw(channels, bits)
        expected = as_rgba(samples, 2**bits - 1)
        name = f"png_{bits}_bit_{channels}_channels"
        yield Variant(f"{name}.png", png(samples, colour_type, bits), expected)
        if colour_type in (GREY, RGB):
            colour = samples[9, 9]
            chunk = struct.pack(f">{channels}H", *colour)
            expected = expected.copy()
            expected[(samples == colour).all(2), 3] = 0
            yield Variant(f"{name}_trns.png", png(samples, colour_type, bits, {b"tRNS": chunk}), expected)
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    opacity = np.arange(255, -1, -1, np.uint8)
    for bits, is_opaque in product((1, 2, 4, 8), (True, False)):
        indexes = draw(1, bits)
        chunks = {b"PLTE": palette[: 2**bits].tobytes()}
        if not is_opaque:
            chunks[b"tRNS"] = opacity[: 2**bits].tobytes()
        table = np.dstack([palette[None], np.full_like(opacity, 255) if is_opaque else opacity])[0]
        expected = as_rgba(table[indexes[:, :, 0]])
        yield Variant(
            f"png_palette_{bits}_bit{'_trns' * (not is_opaque)}.png", png(indexes, PALETTE, bits, chunks), expected
        )


def netpbms() -> Iterator[Variant]:
    """Binary and plain PGM and PPM of many full scales."""
    for channels, full_scale in product((1, 3), (1, 15, 100, 254, 255, 256, 1023, 4095, 65534, 65535)):
        depth = 8 if full_scale < 256 else 16
        samples = (
            np.minimum(draw(channels, depth), full_scale) if full_scale > 99 else draw(channels, 8) % (full_scale + 1)
        )
        eight_bit = full_scale < 256
        rounded = np.rint(samples * (255.0 if eight_bit else 65535.0) / full_scale).astype(
            np.uint8 if eight_bit else np.uint16
        )
        head = f"\n# made by a test\n{WIDTH} {HEIGHT}\n{full_scale}\n".encode()
        raster = samples.astype("u1" if eight_bit else ">u2").tobytes()
        suffix = {1: "pgm", 3: "ppm"}[channels]
        binary, plain = (b"P5", b"P2") if channels == 1 else (b"P6", b"P3")
        yield Variant(f"pnm_{full_scale}.{suffix}", binary + head + raster, as_rgba(rounded))
        text = " ".join(map(str, samples.ravel())).encode()
        yield Variant(f"pnm_plain_{full_scale}.{suffix}", plain + head + text + b"\n", as_rgba(rounded))
    bits = draw(1, 1)
    head = f"\n{WIDTH} {HEIGHT}\n".encode()
    packed = b"".join(np.packbits(1 - row[:, 0]).tobytes() for row in bits)
    yield Variant("pnm.pbm", b"P4" + head + packed, as_rgba(bits * 255))
    yield Variant(
        "pnm_plain.pbm", b"P1" + head + " ".join(map(str, 1 - bits.ravel())).encode() + b"\n", as_rgba(bits * 255)
    )


def tiffs() -> Iterator[Variant]:
    """TIFFs by tifffile: depth, photometric, kind of alpha, planes, compression, byte order, tiles, BigTIFF."""
    extras = {"": None, "_straight": "unassalpha", "_premultiplied": "assocalpha", "_unspecified": "unspecified"}
    for bits, photometric, extra, planar, compression, order in product(
        (8, 16),
        ("minisblack", "miniswhite", "rgb"),
        extras,
        ("contig", "separate"),
        ("none", "zip", "zip_predictor"),
        "<>",
    ):
        num_colours = 3 if photometric == "rgb" else 1
        if planar == "separate" and num_colours == 1 and not extra:
            continue  # one channel has no planes
        name = f"tiff_{bits}_bit_{photometric}{extra}_{planar}_{compression}_{'big' if order == '>' else 'little'}"
        yield one_tiff(name, bits, photometric, extras[extra], planar, compression, byteorder=order)
    for bits, photometric, compression in product((8, 16), ("minisblack", "rgb"), ("none", "zip_predictor")):
        name = f"tiff_{bits}_bit_{photometric}_{compression}"
        for planar in ("contig", "separate") if photometric == "rgb" else ("contig",):
            yield one_tiff(f"{name}_{planar}_tiled", bits, photometric, None, planar, compression, tile=(16, 16))
            yield one_tiff(f"{name}_{planar}_strips", bits, photometric, None, planar, compression, rowsperstrip=5)
        yield one_tiff(f"{name}_bigtiff", bits, photometric, None, "contig", compression, bigtiff=True)
    for dtype in ("int8", "int16", "uint32", "float16", "float32", "float64"):
        content = BytesIO()
        tifffile.imwrite(content, draw(1)[:, :, 0].astype(dtype), photometric="minisblack")
        yield Variant(f"tiff_{dtype}.tif", content.getvalue())


def one_tiff(
    name: str, bits: int, photometric: str, extra: str | None, planar: str, compression: str, **options: object
) -> Variant:
    """Write one TIFF."""
    num_colours = 3 if photometric == "rgb" else 1
    stored = draw(num_colours + (extra is not None), bits)
    full_scale = np.iinfo(stored.dtype).max
    expected = stored.astype(np.float64)
    if extra == "assocalpha":
        alpha = stored[:, :, -1:]
        expected[:, :, :-1] = np.minimum(stored[:, :, :-1] * float(full_scale) / np.maximum(alpha, 1), full_scale)
    kept = expected[:, :, :num_colours] if extra == "unspecified" else expected
    if photometric == "miniswhite":
        stored = stored.copy()
        stored[:, :, :1] = full_scale - stored[:, :, :1]
    is_single = stored.shape[2] == 1
    content = BytesIO()
    if options.pop("bigtiff", False):
        writer = tifffile.TiffWriter(content, bigtiff=True)
    else:
        writer = tifffile.TiffWriter(content, byteorder=options.pop("byteorder", "<"))
    with writer:
        writer.write(
            stored[:, :, 0] if is_single else stored.transpose(2, 0, 1) if planar == "separate" else stored,
            photometric=photometric,
            planarconfig=None if is_single else planar,
            extrasamples=[] if extra is None else [extra],
            compression=None if compression == "none" else "zlib",
            predictor=compression == "zip_predictor",
            metadata=None,
            **options,
        )
    rounded = np.floor(kept + 0.5).astype(stored.dtype)
    return Variant(f"{name}.tif", content.getvalue(), as_rgba(rounded), extra == "assocalpha")


def encoded_by_pillow() -> Iterator[Variant]:
    """Files of Pillow's encoders."""
    for name, mode, options, is_lossless in (
        ("bmp_1.bmp", "1", {}, True), ("bmp_8.bmp", "L", {}, True), ("bmp_palette.bmp", "P", {}, True),
        ("bmp_24.bmp", "RGB", {}, True), ("bmp_32.bmp", "RGBA", {}, True), ("dib.dib", "RGB", {}, True),
        ("tga_8.tga", "L", {}, True), ("tga_24.tga", "RGB", {}, True), ("tga_24_rle.tga", "RGB", {"rle": True}, True),
        ("tga_32.tga", "RGBA", {}, True), ("tga_32_rle.tga", "RGBA", {"rle": True}, True), ("tga_p.tga", "P", {}, True),
        ("tga_la.tga", "LA", {}, True),
        ("gif.gif", "P", {}, True), ("gif_grey.gif", "L", {}, True),
        ("webp.webp", "RGB", {"lossless": True}, True),
        ("webp_alpha.webp", "RGBA", {"lossless": True, "exact": True}, True),
        ("webp_lossy.webp", "RGBA", {}, False),
        ("avif.avif", "RGB", {}, False), ("avif_alpha.avif", "RGBA", {}, False),
        ("jp2_grey.jp2", "L", {}, True), ("jp2_rgb.jp2", "RGB", {}, True), ("jp2_rgba.jp2", "RGBA", {}, True),
        ("jp2_16.jp2", "I;16", {}, True),
        ("jp2_lossy.jp2", "RGB", {"irreversible": True, "quality_mode": "dB", "quality_layers": [40]}, False),
        ("jpeg_grey.jpg", "L", {}, False), ("jpeg_rgb.jpg", "RGB", {}, False), ("jpeg_cmyk.jpg", "CMYK", {}, False),
        ("jpeg_progressive.jpg", "RGB", {"progressive": True}, False),
        ("tiff_1.tif", "1", {}, True), ("tiff_1_fax.tif", "1", {"compression": "group4"}, True),
        ("tiff_palette.tif", "P", {}, True), ("tiff_palette_lzw.tif", "P", {"compression": "tiff_lzw"}, True),
        ("tiff_cmyk.tif", "CMYK", {}, False), ("tiff_cmyk_lzw.tif", "CMYK", {"compression": "tiff_lzw"}, False),
        ("tiff_jpeg.tif", "RGB", {"compression": "jpeg"}, False),
        ("tiff_lzw.tif", "RGB", {"compression": "tiff_lzw"}, True),
        ("tiff_lzw_16.tif", "I;16", {"compression": "tiff_lzw"}, True),
        ("tiff_packbits.tif", "RGBA", {"compression": "packbits"}, True), ("tiff_lab.tif", "LAB", {}, False),
        ("png_interlaced.png", "RGBA", {}, True),
    ):  # fmt: skip
        channels = {"1": 1, "L": 1, "P": 1, "I;16": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "LAB": 3}[mode]
        samples = draw(channels, 16 if mode == "I;16" else 8)
        pixels = samples[:, :, 0] if channels == 1 else samples
        if mode == "1":
            image = Image.fromarray(pixels > 128)
            samples = 255 * (samples > 128).astype(np.uint8)
        elif mode == "P":
            image = Image.frombytes("P", (WIDTH, HEIGHT), pixels.tobytes())
            palette = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
            image.putpalette(palette.tobytes())
            samples = palette[pixels]
        else:
            image = Image.frombytes(mode, (WIDTH, HEIGHT), pixels.tobytes())
        content = BytesIO()
        image.save(content, Image.registered_extensions()[Path(name).suffix], **options)
        samples = samples[:, :, :3] if name == "bmp_32.bmp" else samples  # its fourth byte is unused, by the format
        yield Variant(name, content.getvalue(), as_rgba(samples) if is_lossless else None)


def exrs() -> Iterator[Variant]:
    """Encode EXR by its library: light, and "grey" for alphas, masks and trimaps."""
    kinds = {"half": np.float16, "float": np.float32}
    for kind, names, packing in (
        ("half", "RGB", "ZIP"), ("half", "RGBA", "PIZ"), ("float", "RGB", "NO"), ("float", "Y", "RLE"),
        ("half", "RGB", "DWAA"), ("half", "RGB", "tiles"), ("half", "A", "ZIP"), ("float", "A", "NO"),
        ("half", "YA", "B44"),
    ):  # fmt: skip
        tiles = OpenEXR.TileDescription()
        tiles.xSize = tiles.ySize = 16
        header = {"type": OpenEXR.tiledimage, "tiles": tiles}
        if packing != "tiles":
            header = {"type": OpenEXR.scanlineimage, "compression": getattr(OpenEXR, f"{packing}_COMPRESSION")}
        samples = draw(len(names), 16).astype(np.float32) / 65535
        content = BytesIO()
        OpenEXR.File(header, {name: samples[..., i].astype(kinds[kind]) for i, name in enumerate(names)}).write(content)
        yield Variant(f"exr_{'grey' if len(names) < 3 else 'light'}_{kind}_{names}_{packing}.exr", content.getvalue())


@cache
def imagemagick() -> str | None:
    """Find ImageMagick's command."""
    for name in ("/usr/bin/convert", "magick", "convert"):
        command = shutil.which(name)
        if command and "ImageMagick" in subprocess.run([command, "-version"], capture_output=True, text=True).stdout:
            return command
    return None


def encoded_by_imagemagick(folder: Path) -> Iterator[Variant]:
    """Files of ImageMagick's encoders: what tifffile cannot write, and other programs' habits."""
    runs: list[tuple[str, int, int, list[str]]] = []
    for bits, channels, compression, interlace in product(
        (8, 16), (1, 2, 3, 4), ("None", "LZW", "Zip", "RLE"), ("none", "plane")
    ):
        options = ["-compress", compression, "-interlace", interlace]
        runs.append((f"im_tiff_{bits}_bit_{channels}_{compression}_{interlace}.tif", bits, channels, options))
    for bits, channels, compression in product((8, 16), (1, 3, 4), ("LZW", "Zip")):
        name = f"im_tiff_{bits}_bit_{channels}_{compression}"
        base = ["-compress", compression]
        runs += [
            (f"{name}_big_endian.tif", bits, channels, [*base, "-endian", "MSB"]),
            (f"{name}_tiled.tif", bits, channels, [*base, "-define", "tiff:tile-geometry=16x16"]),
            (f"{name}_fill_order.tif", bits, channels, [*base, "-define", "tiff:fill-order=lsb"]),
            (f"{name}_64.tif", bits, channels, ["TIFF64:", *base]),
        ]
        if channels == 1:
            runs.append((f"{name}_white_is_zero.tif", bits, 1, [*base, "-define", "quantum:polarity=min-is-white"]))
    for bits in (8, 16):
        runs += [
            (f"im_tiff_{bits}_premultiplied_{c}.tif", bits, 4, ["-compress", c, "-define", "tiff:alpha=associated"])
            for c in ("LZW", "Zip", "None")
        ]
        runs += [
            (
                f"im_tiff_{bits}_planes_{alpha}.tif",
                bits,
                4,
                ["-compress", "LZW", "-interlace", "plane", "-define", f"tiff:alpha={alpha}"],
            )
            for alpha in ("associated", "unspecified")
        ]
        runs += [(f"im_interlaced_{bits}_{n}.png", bits, n, ["-interlace", "PNG"]) for n in (1, 3, 4)]
        runs.append((f"im_{bits}.jp2", bits, 3, ["-quality", "0"]))
    for depth in (2, 4, 10, 12, 14):
        runs += [(f"im_tiff_{depth}_bit_{n}.tif", 16, n, ["-depth", str(depth), "-compress", "None"]) for n in (1, 3)]
    runs += [
        ("im_bilevel_fax.tif", 8, 1, ["-monochrome", "-compress", "Group4"]),
        ("im_bilevel_fax3.tif", 8, 1, ["-monochrome", "-compress", "Fax"]),
        ("im_bilevel_lsb.tif", 8, 1, ["-monochrome", "-compress", "None", "-define", "tiff:fill-order=lsb"]),
        ("im_palette.tif", 8, 3, ["-type", "Palette", "-compress", "LZW"]),
        ("im_palette_16.tif", 16, 3, ["-colors", "200", "-type", "Palette", "-compress", "Zip"]),
        ("im_cmyk_8.tif", 8, 3, ["-colorspace", "CMYK", "-compress", "LZW"]),
        ("im_cmyk_16.tif", 16, 3, ["-colorspace", "CMYK", "-compress", "Zip"]),
        ("im_ycbcr_jpeg.tif", 8, 3, ["-compress", "JPEG"]),
        ("im_tga_rle.tga", 8, 4, ["-compress", "RLE"]),
        ("im_bmp3.bmp", 8, 3, ["BMP3:"]),
        ("im_bmp_alpha.bmp", 8, 4, []),
        ("im.gif", 8, 4, []),
    ]
    for name, bits, channels, options in runs:
        source = folder / f"source_{bits}_{channels}.png"
        if not source.exists():
            source.write_bytes(png(draw(channels, bits), {1: GREY, 2: GREY_ALPHA, 3: RGB, 4: RGBA}[channels], bits))
        prefix = options[0] if options and options[0].endswith(":") else ""
        target = folder / name
        subprocess.run(
            [imagemagick(), source, "-depth", str(bits), *options[bool(prefix) :], f"{prefix}{target}"], check=True
        )
        yield Variant(name, target.read_bytes())


def read_by_imagemagick(paths: list[Path], folder: Path) -> dict[Path, NDArray]:
    """Decode files to (H, W, 4) uint16; those that ImageMagick refuses are not in the result."""
    commands = [imagemagick(), "-quiet"]
    for index, path in enumerate(paths):
        commands += ["(", path, "-auto-orient", "-depth", "16", "-write", f"rgba:{folder}/{index}.raw", "+delete", ")"]
    subprocess.run([*commands, "null:"], capture_output=True, check=False)
    found = {}
    for index, path in enumerate(paths):
        raw = folder / f"{index}.raw"
        if raw.is_file():
            found[path] = np.fromfile(raw, "<u2").reshape(HEIGHT, WIDTH, 4)
            os.unlink(raw)
    rest = [path for path in paths if path not in found]  # the first that it refuses ends the command
    return (
        found
        if len(paths) == 1
        else found | {p: v for path in rest for p, v in read_by_imagemagick([path], folder).items()}
    )


def write_png(path: Path, pixels: np.ndarray, colour_type: int, chunks: dict[bytes, bytes] | None = None) -> Path:
    """Write a PNG chunk by chunk, independent of the libraries under test; `chunks` go between header and pixels."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(height, -1)
    body = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, colour_type, 0, 0, 0),
        **(chunks or {}),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in body.items()]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def random_pixels(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def wide_profile(transfer: float = 2.2, space: str = "RGB") -> bytes:
    """Make an ICC profile of ProPhoto's primaries, or of grey, with a plain gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(transfer * 256)) + bytes(2)
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"wide\0" + bytes(78)

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))

    tags = {b"desc": text + bytes(-len(text) % 4), b"wtpt": xyz(0.9642, 1, 0.8249)}
    if space == "RGB":
        colours = ((0.7977, 0.2880, 0), (0.1352, 0.7119, 0), (0.0313, 0.0001, 0.8249))
        tags |= {name + b"XYZ": xyz(*colour) for name, colour in zip((b"r", b"g", b"b"), colours, strict=True)}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    else:
        tags[b"kTRC"] = curve
    place = 132 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, place + len(body), len(content))
        body += content
    kind = (b"mntr", space.encode().ljust(4), b"XYZ ", b"acsp")
    head = struct.pack(">I4xI4s4s4s12x4s", place + len(body), 0x02100000, *kind)
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body
