"""Sets for training found by a layout's name, by folder and by pattern: what is not there is said at once."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.image_io.images import DataError
from data.sources.discovery import find_backgrounds, find_foregrounds, find_named, find_real_images
from data.sources.foregrounds import ForegroundFile
from data.sources.layouts import TRAINING_LAYOUTS, TrainingLayout
from data.sources.packs.reader import PackedForeground
from data.sources.packs.writer import make_pack
from engine.config.config import apply_overrides, load_config
from tests.helpers.paths import REPOSITORY


def fill(folder: Path, *names: str) -> None:
    """Put empty files below a folder: finding opens no image."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.fixture()
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $DETECTRON2_DATASETS that is the current folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pairs(*names: str) -> list[ForegroundFile]:
    """Foregrounds of "PATH PATH" or, cut-outs, of "PATH"."""
    return [ForegroundFile(*map(Path, name.split())) for name in names]


@pytest.mark.parametrize("name", TRAINING_LAYOUTS)
def test_every_layout_is_found_where_it_says(root, name):
    layout = TRAINING_LAYOUTS[name]
    base = root / layout.root
    for folder in layout.image_dirs:
        fill(base / folder, "b.jpg", "a.jpg")
    for folder in layout.alpha_dirs:
        fill(base / folder, "a.png", "b.png")
    images = [base / folder / image for folder in layout.image_dirs for image in ("a.jpg", "b.jpg")]
    alphas = [base / folder / alpha for folder in layout.alpha_dirs for alpha in ("a.png", "b.png")]
    expected = list(zip(images, alphas or [None] * len(images), strict=True))
    if layout.kind == "backgrounds":
        assert find_backgrounds([name]) == images
    elif layout.kind == "images":
        assert find_real_images(name) == expected
    else:
        assert find_foregrounds(name) == [ForegroundFile(*paths) for paths in expected]
    assert layout.source


def test_a_set_of_ones_own_is_one_entry_and_mixes_with_folders(root, monkeypatch):
    own = TrainingLayout("foregrounds", "a/b", ("x", "y/**/*_rgb"), ("x_mattes", "y/**/*_a.png"), source="this test")
    monkeypatch.setitem(TRAINING_LAYOUTS, "own", own)
    fill(root / "a/b", "x/1.jpg", "x_mattes/1.png", "y/sub/2_rgb.webp", "y/sub/2_a.png")
    fill(root, "rgba/3.png", "fg/4.jpg", "alpha/4.png")
    found = find_foregrounds(["rgba", "own", "fg"], [None, None, "alpha"])
    own_files = [f"{root}/a/b/x/1.jpg {root}/a/b/x_mattes/1.png"]
    own_files += [f"{root}/a/b/y/sub/2_rgb.webp {root}/a/b/y/sub/2_a.png"]
    assert found == pairs("rgba/3.png", *own_files, "fg/4.jpg alpha/4.png")


def test_a_folder_called_like_a_layout_is_given_as_a_path(root):
    fill(root, "VOC2012/a.jpg", "VOCdevkit/VOC2012/JPEGImages/b.jpg")
    assert find_backgrounds("./VOC2012") == [Path("VOC2012/a.jpg")]
    assert find_backgrounds("VOC2012") == [root / "VOCdevkit/VOC2012/JPEGImages/b.jpg"]


def test_what_is_neither_name_nor_folder_is_named_with_all_names(root):
    fill(root, "alpha/a.png")
    with pytest.raises(FileNotFoundError) as caught:
        find_foregrounds(["Adobe-DMI", "fg", "Adobe-DIM"], ["no_alpha/**", "alpha", None])
    message = str(caught.value)
    adobe = root / "adobe_composition-1k/Training_set"
    missing = ["Adobe-DMI", "no_alpha", "fg", f"{adobe}/Adobe-licensed images/fg", f"{adobe}/Other/alpha"]
    assert all(f"\n  {folder}\n" in message for folder in missing)
    assert "\n  alpha\n" not in message
    assert all(name in message for name in [*TRAINING_LAYOUTS, "DETECTRON2_DATASETS"])
    assert "Composition-1k/train/fg" not in message


def test_the_layout_is_shown_for_its_own_folders_alone(root):
    fill(root, "fg/a.png", "alpha/b.png")
    for find, places, is_shown in (
        (find_foregrounds, ("Composition-1k-train",), True),
        (find_foregrounds, (["fg", root / "Composition-1k/train/fg"],), True),
        (find_backgrounds, (root / "train2017",), True),
        (find_backgrounds, ("photos",), False),
        (find_real_images, ("nowhere", "alpha"), False),
        (find_foregrounds, ("fg", "alpha"), False),  # lacks partners
    ):
        with pytest.raises(FileNotFoundError) as caught:
            find(*places)
        assert ("Composition-1k/train/fg/NAME.jpg" in str(caught.value)) == is_shown


@pytest.mark.parametrize("places", [["fg/a.png"], ["fg", "fg/a.png", "fg/b.png"]])
def test_a_file_is_no_folder_and_says_to_quote_patterns(root, places):
    fill(root, "fg/a.png", "fg/b.png", "alpha/a.png")
    message = r"^fg/a\.png is a file: expected a folder \(quote patterns, or the shell expands them\)$"
    for find in (find_foregrounds, find_real_images):
        for alphas in (None, "alpha"):
            with pytest.raises(DataError, match=message):
                find(places, alphas)
    with pytest.raises(DataError, match=message):
        find_foregrounds("fg", places)


def test_a_set_of_another_kind_is_refused(root):
    fill(root, "fg/a.png")
    with pytest.raises(DataError, match="VOC2012 is a set of backgrounds, asked for as foregrounds"):
        find_foregrounds(["fg", "VOC2012"])
    with pytest.raises(DataError, match="Adobe-DIM is a set of foregrounds, asked for as images"):
        find_real_images("Adobe-DIM")
    with pytest.raises(DataError, match="Adobe-DIM is a set of foregrounds, asked for as backgrounds"):
        find_backgrounds("Adobe-DIM")


def test_photographs_with_alphas_may_be_foregrounds(root, monkeypatch):
    photographs = TrainingLayout("images", "p", ("x",), ("y",), source="this test")
    monkeypatch.setitem(TRAINING_LAYOUTS, "p", photographs)
    fill(root / "p", "x/1.jpg", "y/1.png")
    assert find_foregrounds("p") == [ForegroundFile(*paths) for paths in find_real_images("p")]
    with pytest.raises(DataError, match="p is a set of images, asked for as backgrounds"):
        find_backgrounds("p")


def test_alphas_come_once_for_each_folder(root):
    fill(root, "fg/a.png", "alpha/a.png")
    with pytest.raises(DataError, match="Adobe-DIM .* brings its own alphas, got alpha too: give null"):
        find_foregrounds("Adobe-DIM", "alpha")
    with pytest.raises(DataError, match="2 foreground folders and 1 alpha folders"):
        find_foregrounds(["fg", "fg"], ["alpha"])
    with pytest.raises(DataError, match="no alphas are named for the images of fg: name"):
        find_real_images(["fg"])
    assert find_real_images("fg", "alpha") == [(Path("fg/a.png"), Path("alpha/a.png"))]


TREE = [
    f"set/{folder}{name}{suffix}"
    for folder, name, suffix in product(("", "s/", "s/t/"), ("a", "b_rgb", "c_rgb", "_rgb", "rgb_d"), (".png", ".JPG"))
]


@pytest.mark.parametrize(
    ("place", "expression"),
    [
        ("set", r"set/(?P<name>[^/]+)\.\w+"),
        ("set/*", r"set/(?P<name>[^/]+)\.\w+"),
        ("set/*.png", r"set/(?P<name>[^/]+)\.png"),
        ("set/*_rgb.JPG", r"set/(?P<name>[^/]+)_rgb\.JPG"),
        ("set/*_rgb", r"set/(?P<name>[^/]+)_rgb\.\w+"),
        ("set/rgb_*", r"set/rgb_(?P<name>[^/]+)\.\w+"),
        ("set/s/**", r"set/s/(?P<name>.+)\.\w+"),
        ("set/**", r"set/(?P<name>.+)\.\w+"),
        ("set/**/*.JPG", r"set/(?P<name>.+)\.JPG"),
        ("set/**/*_rgb", r"set/(?P<name>(.+/)?[^/]+)_rgb\.\w+"),
    ],
)
def test_patterns_find_what_a_regular_expression_finds(root, place, expression):
    fill(root, *TREE, "set/notes.txt", "set/s/._rgb.png")
    expected: dict[str, set[Path]] = {}
    for path in TREE:
        match = re.fullmatch(expression, path)
        if match:
            expected.setdefault(match["name"], set()).add(Path(path))
    found = find_named(Path(place))
    assert expected and {name: set(paths) for name, paths in found.items()} == expected


@pytest.mark.parametrize("place", ["set/*/a.png", "set/*_*", "*/set", "set/**/**/*", "set/**/a", "set/***"])
def test_other_patterns_are_refused(root, place):
    fill(root, "set/a.png")
    with pytest.raises(DataError, match=f"cannot understand {re.escape(place)}: expected FOLDER"):
        find_backgrounds(place)


def test_a_pattern_that_nothing_fits_is_said(root):
    fill(root, "set/a.png")
    with pytest.raises(FileNotFoundError, match=re.escape("no image matches set/*_rgb")):
        find_backgrounds("set/*_rgb")
    with pytest.raises(FileNotFoundError, match="no image in set; it holds 1 other file: b.txt"):
        fill(root, "set/b.txt")
        (root / "set/a.png").unlink()
        find_backgrounds("set/*_rgb")
    with pytest.raises(FileNotFoundError, match=re.escape("no image matches set/**")):
        find_backgrounds("set/**")


def test_images_and_alphas_may_share_a_folder(root):
    fill(root, "set/a.png", "set/a_alpha.png", "set/b.png", "set/b_alpha.png")
    expected = pairs("set/a.png set/a_alpha.png", "set/b.png set/b_alpha.png")
    assert find_foregrounds("set/*.png", "set/*_alpha.png") == expected
    assert find_foregrounds("set", "set/*_alpha") == expected
    assert find_foregrounds("set/*_alpha", "set") == pairs(*(f"{f.alpha_path} {f.path}" for f in expected))
    fill(root, "short/a.png", "short/a_m.png")
    assert find_foregrounds("short/*.png", "short/*_m") == pairs("short/a.png short/a_m.png")
    (root / "a_folder_of_a_long_name").symlink_to(root / "set")
    for deep in ("", "/**"):
        assert (
            len(find_foregrounds(f"a_folder_of_a_long_name{deep}", f"a_folder_of_a_long_name{deep}/*_alpha.png")) == 2
        )
    fill(root, "set/c.png", "set/d_alpha.png")
    with pytest.raises(FileNotFoundError) as caught:
        find_foregrounds("set/*.png", "set/*_alpha.png")
    assert "2 files lack their partners. Missing:" in str(caught.value)
    assert "\n  set/*.png with d for *\n  set/*_alpha.png with c for *\n" in str(caught.value)


def test_folders_below_are_matched_by_their_own_names_too(root):
    fill(root, "img/x/a.jpg", "img/y/a.jpg", "img/b.jpg", "mat/x/a.png", "mat/y/a.png", "mat/b.png")
    expected = [("img/b.jpg", "mat/b.png"), ("img/x/a.jpg", "mat/x/a.png"), ("img/y/a.jpg", "mat/y/a.png")]
    assert find_real_images("img/**", "mat/**") == [(Path(image), Path(alpha)) for image, alpha in expected]
    (root / "mat/x/a.png").rename(root / "mat/a.png")
    with pytest.raises(FileNotFoundError, match=re.escape("mat/** with x/a for *")):
        find_real_images("img/**", "mat/**")
    fill(root, "mat/b.webp")
    with pytest.raises(DataError, match=re.escape("mat/** holds more than one image called b:")):
        find_real_images("img/**", "mat/**")


def test_names_match_however_an_accent_is_stored(root):
    fill(root, "img/caf\u00e9/a\u0308_rgb.jpg", "mat/cafe\u0301/\u00e4.png", "in/u\u0308.jpg", "out/\u00fc.png")
    (pair,) = find_real_images("img/**/*_rgb", "mat/**")
    assert pair == (Path("img/caf\u00e9/a\u0308_rgb.jpg"), Path("mat/cafe\u0301/\u00e4.png"))
    assert find_real_images("in", "out") == [(Path("in/u\u0308.jpg"), Path("out/\u00fc.png"))]


def test_hidden_folders_and_links_are_no_folders_below(root):
    fill(root, "set/a.png", "set/.cache/b.png", "set/sub/.hidden.png", "elsewhere/c.png")
    (root / "set/link").symlink_to(root / "elsewhere")
    (root / "set/circle").symlink_to(root / "set")
    assert find_backgrounds("set/**") == [Path("set/a.png")]
    assert find_backgrounds("set/link/**") == [Path("set/link/c.png")]


def test_a_pack_is_a_place_of_foregrounds_that_holds_its_alphas(root):
    (root / "rgba").mkdir()
    Image.fromarray(np.full((3, 4, 4), 9, np.uint8)).save(root / "rgba/a.png")
    make_pack([ForegroundFile(root / "rgba/a.png")], root / "pack", 1, lambda _: None)
    in_pack, in_folder = find_foregrounds(["pack", "rgba"])
    assert isinstance(in_pack, PackedForeground) and in_folder == ForegroundFile(Path("rgba/a.png"))
    with pytest.raises(DataError, match="pack is a pack and holds its alphas, got rgba too: give null"):
        find_foregrounds("pack", "rgba")
    refusal = "pack is a pack: name it by itself, where foregrounds go"
    with pytest.raises(DataError, match=f"^{refusal}"):
        find_backgrounds("pack")
    for alpha_dirs in (None, "rgba"):
        with pytest.raises(DataError, match=f"^{refusal}"):
            find_real_images(["pack"], alpha_dirs)
    with pytest.raises(DataError, match=f"^{refusal}"):
        find_foregrounds("rgba", "pack")
    for place in (f"{root}/**", "pack/**"):
        with pytest.raises(DataError, match=refusal):
            find_foregrounds(place)


@pytest.mark.parametrize("places", [None, [], [None], ["fg", None], ""])
def test_no_place_is_refused(root, places):
    fill(root, "fg/a.png", "alpha/a.png")
    with pytest.raises(DataError, match="expected a folder of foregrounds or several, got .*: name at least one"):
        find_foregrounds(places)
    with pytest.raises(DataError, match="expected a folder of backgrounds"):
        find_backgrounds(places)
    with pytest.raises(DataError, match="expected a folder of images"):
        find_real_images(places, "alpha")


def test_names_and_patterns_are_overrides_of_a_config(root):
    cfg = load_config(REPOSITORY / "configs/ViTMatte_S_100ep.py")
    changes = {"foreground_dirs": "[Adobe-DIM,set/**/*_rgb.png]", "alpha_dirs": "[null,set/**/*_alpha.png]"}
    changes["background_dirs"] = "[VOC2012,COCO-train2017]"
    apply_overrides(cfg, [f"dataloader.train.dataset.{key}={value}" for key, value in changes.items()])
    fill(root / "adobe_composition-1k/Training_set/Adobe-licensed images", "fg/a.jpg", "alpha/a.jpg")
    fill(root / "adobe_composition-1k/Training_set/Other", "fg/b.png", "alpha/b.png")
    fill(root, "VOCdevkit/VOC2012/JPEGImages/v.jpg", "train2017/c.jpg", "set/x/s_rgb.png", "set/x/s_alpha.png")
    settings = cfg.dataloader.train.dataset
    names = [
        Path(foreground.name).name for foreground in find_foregrounds(settings.foreground_dirs, settings.alpha_dirs)
    ]
    assert names == ["a.jpg", "b.png", "s_rgb.png"]
    assert [path.name for path in find_backgrounds(settings.background_dirs)] == ["v.jpg", "c.jpg"]


@pytest.mark.parametrize("alpha_dirs", [None, [None]])
def test_cut_outs_need_no_alphas(root, alpha_dirs):
    Image.fromarray(np.full((3, 4, 4), 9, np.uint8)).save(root / "a.png")
    (found,) = find_foregrounds([root], alpha_dirs)
    assert found.open().size == (4, 3)
