"""Folders take every format that is read and name the rest; whatever a decoder raises becomes the file's error."""

import logging
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageFile

from data.image_io import decoding, formats
from data.image_io.decoding import decode
from data.image_io.formats import READABLE, find_images
from data.image_io.images import DataError, read_raw
from data.sources.discovery import find_backgrounds
from inference.jobs import KINDS, find_jobs
from runtime.errors import UserError
from tests import fuzz_images
from tests.helpers.image_files import GREY, PALETTE, RGB, RGBA, draw, encoded_by_pillow, exrs, netpbms, png, pngs, tiffs
from tests.helpers.paths import REPOSITORY
from tools import predict


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    (image or Image.fromarray(draw(3))).save(path, **options)
    return path


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("of AVIF"),
        NotImplementedError("of DDS"),
        struct.error("short"),
        KeyError("a table"),
        IndexError(),
        MemoryError(),
        ZeroDivisionError("no width"),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_decoder_raises_is_the_file_s_error(tmp_path, monkeypatch, error):
    def load(image: ImageFile.ImageFile) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *arguments, **options: load(None))
    for path in (save(tmp_path / "a.bmp"), save(tmp_path / "a.tif")):
        with pytest.raises(DataError, match=rf"cannot read {path}: .*Replace or remove it$") as raised:
            read_raw(path)
        assert raised.value.__cause__.__cause__ is error


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".jpg", ".gif"])
def test_an_error_of_our_own_code_is_not_taken_for_a_bad_file(tmp_path, monkeypatch, suffix):
    path = save(tmp_path / f"a{suffix}", **({} if suffix != ".tif" else {"compression": "jpeg"}))

    def fail(*arguments: object) -> None:
        raise KeyError("ours")

    for name in ("turn_upright", "_open"):
        with monkeypatch.context() as patched:
            patched.setattr(decoding, name, fail)
            with pytest.raises(KeyError, match="ours"):
                read_raw(path)


def test_a_bad_file_of_any_format_stops_no_other(tmp_path, capsys):
    images, trimaps = tmp_path / "images", tmp_path / "trimaps"
    images.mkdir()
    trimaps.mkdir()
    bad = {".avif", ".gif", ".jp2", ".tga", ".tif", ".webp", ".pgm"}
    for index, suffix in enumerate(sorted(bad)):
        for name, is_bad in ((f"{index}_a.png", False), (f"{index}_b{suffix}", True), (f"{index}_c.png", False)):
            path = save(images / name, Image.fromarray(draw(1)[:, :, 0]) if suffix == ".pgm" else None)
            if is_bad:
                content = bytearray(path.read_bytes())
                del content[len(content) // 2 :]
                path.write_bytes(content)
            save(trimaps / f"{path.stem}.png", Image.new("L", (26, 19), 128))
    command = [str(images), "--trimap-dir", str(trimaps), "--output", str(tmp_path / "out"), "--baseline", "trivial"]
    assert predict.main(command) == 1
    lines = capsys.readouterr().err.splitlines()
    start = lines.index(f"predict.py: {len(bad)} of {3 * len(bad)} images failed:")
    assert [Path(line.split(": ")[0].strip()).suffix for line in lines[start + 1 :]] == sorted(bad)
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(bad)


def big_chunks(num_bytes: int) -> dict[bytes, bytes]:
    stored = zlib.compress(b"x" * num_bytes, 0)
    return {
        b"iCCP": b"profile\0\0" + stored,
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + stored,
        b"zTXt": b"Comment\0\0" + stored,
    }


@pytest.mark.parametrize(("bits", "colour_type", "channels"), [(8, RGB, 3), (16, RGB, 3), (16, RGBA, 4), (16, GREY, 1)])
@pytest.mark.parametrize("num_bytes", [2_400_000, 9_000_000])
def test_large_metadata_is_no_damage(tmp_path, bits, colour_type, channels, num_bytes):
    """OpenCV's own limit is 8 MB a chunk."""
    samples = draw(channels, bits)
    (tmp_path / "a.png").write_bytes(png(samples, colour_type, bits, big_chunks(num_bytes)))
    np.testing.assert_array_equal(np.atleast_3d(read_raw(tmp_path / "a.png")), samples)


def test_every_readable_format_of_a_folder_and_pattern_is_taken(tmp_path, monkeypatch):
    for suffix, name in READABLE.items():
        Image.fromarray(draw(3)).save(tmp_path / f"{suffix[1:]}{suffix.upper()}", name)
    assert [read_raw(path).shape for path in find_images(tmp_path)] == [(19, 26, 3)] * len(READABLE)
    for images in (tmp_path, tmp_path / "*", *find_images(tmp_path)):
        jobs = find_jobs([str(images)], tmp_path / "out", KINDS["alpha"], ".png")
        assert len(jobs) == (1 if images.is_file() else len(READABLE))
    assert len(find_backgrounds(tmp_path)) == len(READABLE)


def test_what_a_folder_holds_besides_is_counted_and_named(tmp_path, caplog):
    save(tmp_path / "a.png")
    for name in ("b.cr2", "c.CR3", "d.dng", "e.nef", "f.mp4", "notes.txt", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "sub.txt").mkdir()
    for list_images in (
        lambda: find_images(tmp_path),
        lambda: find_jobs([str(tmp_path / "*")], tmp_path / "out", KINDS["alpha"], ".png"),
        lambda: find_backgrounds(tmp_path / "**"),
    ):
        formats.warn_once.cache_clear()
        caplog.clear()
        assert len(list_images()) == 1
        (line,) = caplog.messages
        assert "images taken: 1; left out: 6 other files: " in line
        assert "b.cr2, c.CR3, d.dng and 1 more (camera raw: develop it to 16-bit TIFF or PNG" in line
        assert "f.mp4 (video: give tools/predict.py the clip" in line and "notes.txt" in line
        assert ".hidden" not in line and "sub.txt" not in line
    list_images()
    assert len(caplog.messages) == 1  # a run lists a folder several times


def test_a_folder_of_folders_names_them(tmp_path):
    for number in range(10):
        (tmp_path / f"day{number}").mkdir()
    words = r"no image in .*; it holds subfolders, which are not searched: day0, .*day7 and 2 more$"
    with pytest.raises(FileNotFoundError, match=words):
        find_images(tmp_path)


def test_a_folder_without_a_readable_image_names_what_it_holds(tmp_path):
    (tmp_path / "IMG_1.CR3").touch()
    with pytest.raises(FileNotFoundError, match=r"no image in .*; it holds 1 other file: IMG_1.CR3 \(camera raw"):
        find_images(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no image matches this pattern; it holds .*IMG_1.CR3 \(camera raw: develop"
    ):
        find_jobs([str(tmp_path / "*")], None, KINDS["alpha"], ".png")


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("a.jxl", b"", "JPEG XL: convert"),
        ("a.jpg", b"\xff\x0a", "JPEG XL: convert"),  # named wrongly
        ("clip.mp4", b"\0\0\0\x18ftypisom", "video: give tools/predict.py the clip"),
        ("clip", b"\x1aE\xdf\xa3", "video: give tools/predict.py the clip"),
        ("a.psd", b"8BPS", "layered: export"),
        ("a.exr", b"v/1\x01", "scene-linear: EXR is not"),
        ("a.hdr", b"#?RADIANCE", "floating-point: convert"),
        ("a.NEF", b"MM\0*", "camera raw: develop"),
        ("a.svg", b"<svg/>", "vector or page: render"),
        ("a.txt", b"text", "not an image of a format that is read"),
    ],
)
def test_a_file_of_another_format_says_what_to_do(tmp_path, name, content, advice):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"cannot read .*{name}: {advice}"):
        read_raw(tmp_path / name)


def frames(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.roll(draw(3), 3 * index, 1)) for index in range(count)]


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {}), ("a.tif", {}), ("a.avif", {}),
     ("b.tif", {"compression": "jpeg"})],
)  # fmt: skip
def test_several_frames_are_refused_and_one_is_read(tmp_path, name, options):
    first, *others = frames(3)
    first.save(tmp_path / name, save_all=True, append_images=others, **options)
    with pytest.raises(DataError, match=rf"{name}: it holds 3 frames or pages, and one is expected\. Save"):
        read_raw(tmp_path / name)
    first.save(tmp_path / name, save_all=True, **options)
    assert read_raw(tmp_path / name).shape == (19, 26, 3)


@pytest.mark.parametrize("num_frames", [2, 3])
def test_several_images_of_a_heic_are_refused(tmp_path, num_frames):
    file = pillow_heif.HeifFile()
    for image in frames(num_frames):
        file.add_from_pillow(image)
    file.save(tmp_path / "a.heic", quality=-1)
    with pytest.raises(DataError, match=rf"a\.heic: it holds {num_frames} frames or pages"):
        read_raw(tmp_path / "a.heic")


@pytest.mark.parametrize("kind", [0x020001, 0x020002, 0x020003], ids=["panorama", "stereo", "angles"])
def test_views_of_a_camera_s_jpeg_are_frames(tmp_path, kind):
    """Entry types of CIPA DC-007. Pillow writes the first image as the primary one, others as of no type."""
    first, second = frames(2)
    first.save(tmp_path / "a.mpo", save_all=True, append_images=[second])
    with Image.open(tmp_path / "a.mpo") as image:
        entry = struct.pack("<II", 0, image.mpinfo[0xB002][1]["Size"])
    content = (tmp_path / "a.mpo").read_bytes()
    assert content.count(entry) == 1
    (tmp_path / "a.mpo").write_bytes(content.replace(entry, struct.pack("<I", kind) + entry[4:]))
    with pytest.raises(DataError, match=r"a\.mpo: it holds 2 frames or pages"):
        read_raw(tmp_path / "a.mpo")


def test_images_one_after_the_other_in_a_netpbm_file_are_frames(tmp_path):
    content = BytesIO()
    frames(1)[0].save(content, "PPM")
    (tmp_path / "a.ppm").write_bytes(content.getvalue() * 2)
    with pytest.raises(DataError, match="2 frames or pages"):
        read_raw(tmp_path / "a.ppm")
    (tmp_path / "a.ppm").write_bytes(content.getvalue() + b"\n")
    np.testing.assert_array_equal(read_raw(tmp_path / "a.ppm"), draw(3))


def test_thumbnails_and_previews_are_no_frames(tmp_path):
    first, second = frames(2)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert read_raw(tmp_path / "a.jpg").shape == (19, 26, 3)
    (tmp_path / "a.mpo").write_bytes((tmp_path / "a.jpg").read_bytes())
    assert read_raw(tmp_path / "a.mpo").shape == (19, 26, 3)
    for subfiletype, is_frame in ((1, False), (2, True)):
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(draw(3), photometric="rgb", metadata=None)
            file.write(draw(3)[::2, ::2], photometric="rgb", metadata=None, subfiletype=subfiletype)
        if is_frame:
            with pytest.raises(DataError, match="2 frames or pages"):
                read_raw(tmp_path / "a.tif")
        else:
            np.testing.assert_array_equal(read_raw(tmp_path / "a.tif"), draw(3))


def test_a_thumbnail_before_the_image_is_not_taken_for_it(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(draw(3)[::2, ::2], photometric="rgb", metadata=None, subfiletype=1)
        file.write(draw(3), photometric="rgb", metadata=None)
    with pytest.raises(DataError, match="its first page is a thumbnail"):
        read_raw(tmp_path / "a.tif")


def test_a_strip_that_is_not_there_is_not_made_up(tmp_path):
    """tifffile gives zeros for it."""
    content = BytesIO()
    tifffile.imwrite(content, draw(3, 16), photometric="rgb", rowsperstrip=4, compression="zlib", metadata=None)
    with tifffile.TiffFile(BytesIO(content.getvalue())) as file:
        tag = file.pages[0].tags["StripByteCounts"]
        place, size = tag.valueoffset, {3: 2, 4: 4}[tag.dtype]
    damaged = bytearray(content.getvalue())
    damaged[place + size : place + 2 * size] = bytes(size)
    with pytest.raises(UserError, match="parts of the image are missing"):
        decode(bytes(damaged))


def test_a_palette_that_is_not_there_is_the_file_s_error(tmp_path):
    (tmp_path / "a.png").write_bytes(png(draw(1, 1), PALETTE, 1))
    with pytest.raises(DataError, match=r"cannot read .*a\.png"):
        read_raw(tmp_path / "a.png")


def test_a_damaged_file_leaves_one_line_on_the_screen(tmp_path):
    """The libraries' own lines name no file."""
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(100))
    (tmp_path / "b.png").write_bytes(png(draw(1, 8), PALETTE, 8)[:-30])
    code = """
import sys
from data.image_io.images import DataError, read_raw
for path in sys.argv[1:]:
    try:
        read_raw(path)
    except DataError as error:
        print(error)
"""
    command = [sys.executable, "-c", code, tmp_path / "a.tif", tmp_path / "b.png"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 2
    assert logging.getLogger("tifffile").level == logging.CRITICAL


@pytest.mark.filterwarnings("ignore")  # of Pillow: what a damaged tag may be
@pytest.mark.parametrize("kind", ["png", "pnm", "tiff", "jpeg", "jp2", "gif", "bmp", "tga", "webp", "exr"])
def test_damaged_files_are_refused_by_name_or_read_right(tmp_path, kind):
    """A sample of tests/fuzz_images.py, in this process."""
    contents = {v.name: v.content for v in (*pngs(), *netpbms(), *tiffs(), *encoded_by_pillow(), *exrs())}
    path = tmp_path / "damaged"
    verdicts = []
    for layout in [name for name in fuzz_images.LAYOUTS if name.startswith(kind)]:
        for seed in range(12):
            content = fuzz_images.damage(contents[layout], layout, seed)
            path.write_bytes(content)
            try:
                verdicts.append(fuzz_images.judge(content, fuzz_images.read(path, layout), layout))
            except DataError as error:
                assert str(error).startswith(f"cannot read {path}: ") and "\n" not in str(error)
                verdicts.append("refused")
    assert set(verdicts) <= {"refused", "equal", "alone"} and "refused" in verdicts


def test_a_tiff_whose_page_is_its_own_next_one_does_not_hang(tmp_path):
    content = BytesIO()
    tifffile.imwrite(content, draw(3, 16), photometric="rgb", metadata=None)
    damaged = bytearray(content.getvalue())
    (start,) = struct.unpack_from("<I", damaged, 4)
    (count,) = struct.unpack_from("<H", damaged, start)
    struct.pack_into("<I", damaged, start + 2 + 12 * count, start)
    (tmp_path / "a.tif").write_bytes(damaged)
    np.testing.assert_array_equal(read_raw(tmp_path / "a.tif"), draw(3, 16))
