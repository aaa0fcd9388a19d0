"""inference/jobs.py: what is made of files, folders and patterns, and what is refused before anything is written."""

import errno
import os
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from data.image_io.images import DataError
from inference.jobs import KINDS, Job, check_folder, check_outputs, find_jobs

ALPHA, RGBA, COMPOSITE = (KINDS[name] for name in ("alpha", "rgba", "composite"))


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Empty files, of which the names alone matter, in the working directory, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("v2.0").mkdir()
    for name in (
        "photo.jpg",
        "shot.v2.png",
        "a/2.png",
        "a/10.JPG",
        "a/note.txt",
        "a/.hidden.png",
        "b/2.png",
        "b/c/3.tif",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def table(*images, output=None, kind=ALPHA, suffix=".png"):
    """Image -> what is made of it, both as seen from the working directory."""
    jobs = find_jobs(images, output and Path(output), kind, suffix)
    return {str(job.image): os.path.relpath(job.output) for job in jobs}


@pytest.mark.parametrize(
    ("images", "options", "expected"),
    [
        (["photo.jpg"], {}, {"photo.jpg": "photo_alpha.png"}),
        (["photo.jpg"], {"kind": RGBA, "suffix": ".tif"}, {"photo.jpg": "photo_cutout.tif"}),
        (["shot.v2.png"], {"kind": COMPOSITE}, {"shot.v2.png": "shot.v2_composite.png"}),
        (["photo.jpg"], {"output": "new/alpha.tif"}, {"photo.jpg": "new/alpha.tif"}),
        (["photo.jpg"], {"output": "new"}, {"photo.jpg": "new/photo.png"}),
        (["photo.jpg"], {"output": "a"}, {"photo.jpg": "a/photo.png"}),
        (["photo.jpg"], {"output": "v2.0"}, {"photo.jpg": "v2.0/photo.png"}),
        (["photo.jpg", "a/2.png"], {}, {"photo.jpg": "photo_alpha.png", "a/2.png": "a/2_alpha.png"}),
        (["photo.jpg", "a/2.png"], {"output": "v1.0"}, {"photo.jpg": "v1.0/photo.png", "a/2.png": "v1.0/2.png"}),
        (["a"], {}, {"a/10.JPG": "a_alpha/10.png", "a/2.png": "a_alpha/2.png"}),
        (["a/"], {"kind": RGBA}, {"a/10.JPG": "a_cutout/10.png", "a/2.png": "a_cutout/2.png"}),
        (["a"], {"output": "o.2"}, {"a/10.JPG": "o.2/10.png", "a/2.png": "o.2/2.png"}),
        (["b"], {"output": "out"}, {"b/2.png": "out/2.png"}),
        (["a/*"], {}, {"a/10.JPG": "a_alpha/10.png", "a/2.png": "a_alpha/2.png"}),
        (["b/**/*"], {}, {"b/2.png": "b_alpha/2.png", "b/c/3.tif": "b_alpha/3.png"}),
        (["a", "b"], {}, {"a/10.JPG": "a_alpha/10.png", "a/2.png": "a_alpha/2.png", "b/2.png": "b_alpha/2.png"}),
        (["a/2.png", "a/*.png", "b/../a/2.png"], {}, {"a/2.png": "a/2_alpha.png"}),
    ],
)
def test_files_lie_beside_their_images_or_where_they_are_told(images, options, expected):
    found = table(*images, **options)
    assert found == expected and list(found) == list(expected)  # in this order


def test_here_is_a_folder_too(monkeypatch):
    monkeypatch.chdir("a")
    assert set(table(".").values()) == {"../a_alpha/2.png", "../a_alpha/10.png"}
    assert set(table("*.png").values()) == {"../a_alpha/2.png"}


def test_frames_that_are_links_to_one_file_are_frames():
    Path("a/3.png").symlink_to(Path("a/2.png").absolute())
    assert table("a/?.png") == {"a/2.png": "a_alpha/2.png", "a/3.png": "a_alpha/3.png"}


def test_a_circle_of_links_is_no_other_path():
    Path("circle").symlink_to("circle")
    assert table("photo.jpg", output="circle") == {"photo.jpg": "circle/photo.png"}
    check_outputs([Job(Path("photo.jpg"), Path("new/alpha.png"))], [Path("circle")], ALPHA, 8)


@pytest.mark.parametrize(
    ("images", "output", "error", "words"),
    [
        (["nowhere.png"], None, FileNotFoundError, "nowhere.png: no such file or folder"),
        (["photo.jpg", "cut.png"], None, FileNotFoundError, "cut.png: .* To name the result, give it as the output"),
        (["a/*.bmp"], None, FileNotFoundError, r"a/\*.bmp: no image matches this pattern"),
        (["a/*.txt"], None, FileNotFoundError, r"a/\*.txt: no image matches this pattern"),
        (["b/c", "empty"], None, FileNotFoundError, "no image in empty"),
        (
            ["a", "b"],
            "out",
            DataError,
            "a/2.png and b/2.png would both be written to out/2.png: run one of them",
        ),
        (["?/2.*"], None, DataError, "a/2.png and b/2.png would both be written to"),
        (["a"], "photo.jpg", DataError, "photo.jpg: expected a folder, got the name of a file"),
        (["a"], "alpha.png", DataError, "alpha.png: expected a folder, got the name of a file"),
        (["b"], "alpha.png", DataError, "alpha.png: expected a folder, got the name of a file"),
        (["b/2*"], "alpha.TIF", DataError, "alpha.TIF: expected a folder, got the name of a file"),
        (["a"], "b/../a", DataError, "b/../a: images are looked for there too"),
        (["photo.jpg", "a/*"], "link", DataError, "link: images are looked for there too"),
        (["b/**/*"], "b/c", DataError, "b/c: images are looked for there too"),
    ],
)
def test_what_cannot_be_found_or_told_apart_is_an_error(images, output, error, words):
    Path("empty").mkdir()
    Path("link").symlink_to("a")
    with pytest.raises(error, match=words):
        table(*images, output=output)


@pytest.mark.parametrize(
    ("output", "kind", "bits", "words"),
    [
        ("alpha.jpg", ALPHA, 8, "ending in .bmp, .exr, .png, .tif, .tiff, .webp. An alpha is stored without loss"),
        ("alpha.txt", ALPHA, 8, "expected the name of an image"),
        ("alpha", ALPHA, 8, "expected the name of an image"),
        ("cut.bmp", RGBA, 8, "expected the name of an image ending in .exr, .png, .tif, .tiff, .webp. .* a composite"),
        ("cut.WEBP", RGBA, 16, "cut.WEBP: WebP holds no 16 bit"),
        ("alpha.bmp", ALPHA, 16, "BMP holds no 16 bit"),
        ("new.gif", COMPOSITE, 8, "expected the name of an image"),
        ("photo.jpg", COMPOSITE, 8, "photo.jpg is an input and would be overwritten"),
        ("b/../a/2.png", ALPHA, 8, "is an input and would be overwritten"),
        ("link/2.png", ALPHA, 8, "link/2.png is an input and would be overwritten"),
        ("b/2.png", ALPHA, 8, "b/2.png is an input and would be overwritten"),
        ("a/2.png/deep/alpha.png", ALPHA, 8, "a/2.png is no folder"),
    ],
)
def test_what_would_fail_or_destroy_is_refused_at_once(output, kind, bits, words):
    Path("link").symlink_to("a")
    before = sorted(Path().rglob("*"))
    jobs = [Job(Path("photo.jpg"), Path("made/fine.png")), Job(Path("a/2.png"), Path(output))]
    with pytest.raises((DataError, OSError), match=words):
        check_outputs(jobs, [Path("b/2.png")], kind, bits)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("output", "kind", "bits"),
    [("new/deep/alpha.TIF", ALPHA, 16), ("alpha.webp", ALPHA, 8), ("c.tiff", RGBA, 16), ("c.jpg", COMPOSITE, 8)],
)
def test_what_can_be_written_passes_and_nothing_is_made(output, kind, bits):
    before = sorted(Path().rglob("*"))
    check_outputs([Job(Path("photo.jpg"), Path(output))], [], kind, bits)
    assert sorted(Path().rglob("*")) == before


def test_a_folder_without_rights_is_named(monkeypatch):
    """Whether it is there or its parent alone; simulated, since a superuser has all rights."""

    def refuse(parent):
        if parent == Path("a"):
            raise PermissionError(errno.EACCES, "Permission denied", str(parent))

    def fill(dir):
        refuse(dir)
        return TemporaryFile(dir=dir)

    make = os.mkdir
    monkeypatch.setattr(os, "mkdir", lambda path, mode: (refuse(Path(path).parent), make(path, mode)))
    monkeypatch.setattr("inference.jobs.TemporaryFile", fill)
    check_outputs([Job(Path("photo.jpg"), Path("b/new/alpha.png"))], [], ALPHA, 8)
    for folder in ("a/new", "a"):
        with pytest.raises(OSError, match=f"cannot write into {folder}: Permission denied; name another place"):
            check_outputs([Job(Path("photo.jpg"), Path(folder, "alpha.png"))], [], ALPHA, 8)


@pytest.mark.parametrize("folder", ["dangling", "dangling/deep", "new/" + 300 * "x"])
def test_a_folder_that_cannot_be_made_is_refused_whatever_the_rights_and_leaves_nothing(folder):
    Path("dangling").symlink_to("gone/away")
    before = sorted(Path().rglob("*"))
    with pytest.raises(OSError, match="cannot write into|File name too long"):
        check_folder(Path(folder))
    assert sorted(Path().rglob("*")) == before


def test_a_folder_that_another_command_fills_meanwhile_stays(monkeypatch):
    def fill(dir):
        Path(dir, "theirs").touch()
        return TemporaryFile(dir=dir)

    monkeypatch.setattr("inference.jobs.TemporaryFile", fill)
    check_folder(Path("new/deep"))
    assert [*Path("new").rglob("*")] == [Path("new/deep"), Path("new/deep/theirs")]
