"""tools/dataset/check_dataset.py and data.checks: each fault is found at its file, and the exit status."""

import csv
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from data.checks.dataset import Report, check_sets
from data.checks.faults import FAULTS
from data.checks.sets import FolderSet, read_config_sets
from data.image_io.formats import find_images
from data.image_io.images import DataError
from data.sources.foregrounds import ForegroundFile
from data.sources.layouts import TRAINING_LAYOUTS, TrainingLayout
from data.sources.packs.writer import make_pack
from tests.helpers.broken_dataset import FAULTY, add_pair, draw, make_healthy, ordinary_user, save, sets_of
from tools.dataset import check_dataset


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return make_healthy(tmp_path_factory.mktemp("healthy") / "set")


@pytest.fixture
def root(healthy):
    """A healthy set to be broken, where everybody may go; pytest's own folders are closed to all but their user."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copytree(healthy, Path(folder, "set")))


def found(report: Report, root: Path) -> list[tuple[str, str]]:
    return [(finding.code, str(finding.path.relative_to(root))) for finding in report.findings]


def folder_options(root: Path) -> list[str]:
    """Name all folders of the set but that of cut-outs."""
    fg, alpha, backgrounds = (str(root / f"train/{name}") for name in ("fg", "alpha", "backgrounds"))
    merged, trimaps, alphas = (str(root / f"test/{name}") for name in ("image", "trimap", "alpha"))
    return [
        *("--foreground-dir", fg, "--alpha-dir", alpha, "--background-dir", backgrounds),
        *("--test-image-dir", merged, "--test-trimap-dir", trimaps, "--test-alpha-dir", alphas, "--workers", "1"),
    ]


def test_a_healthy_set_has_no_fault(healthy):
    assert check_sets(sets_of(healthy)) == Report([], 2 * (2 + 1 + 1 + 3))


@pytest.mark.parametrize("name", FAULTY)
def test_each_fault_alone_is_found_at_its_file_and_nothing_else(root, name):
    expected = FAULTY[name](root)
    with ordinary_user():
        report = check_sets(sets_of(root))
    assert sorted(found(report, root)) == sorted(expected)
    assert all(finding.detail for finding in report.findings)


def test_all_faults_together(root):
    expected = set().union(*(breaking(root) for breaking in FAULTY.values()))
    assert {code for code, _ in expected} == FAULTS.keys() - {"taken-twice"}  # of the places that are named
    with ordinary_user():
        report = check_sets(sets_of(root))
    assert sorted(found(report, root)) == sorted(expected)
    order = list(FAULTS)
    assert report.findings == sorted(report.findings, key=lambda f: (order.index(f.code), f.path))


def test_processes_find_what_a_loop_finds(root):
    for name in ("size_mismatch", "truncated", "premultiplied", "duplicates", "near_duplicate"):
        FAULTY[name](root)
    tracked = []
    report = check_sets(sets_of(root), 2, lambda outcomes, number: tracked.append(number) or outcomes)
    assert report == check_sets(sets_of(root)) and len(report.findings) == 7
    assert tracked == [8 + 1 + 2 + 1 + 3 + 2]  # groups of files


def test_only_the_code_that_says_so_is_an_error(root, capsys):
    assert check_dataset.main(folder_options(root)) == 0
    assert capsys.readouterr().out == "12 files checked, 0 errors, 0 warnings: training may start\n"
    FAULTY["wrong_extension"](root)
    assert check_dataset.main(folder_options(root)) == 0
    assert capsys.readouterr().out.endswith("13 files checked, 0 errors, 1 warning: training may start\n")
    FAULTY["zero_bytes"](root)
    assert check_dataset.main(folder_options(root)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"error zero-bytes: 1 file: {FAULTS['zero-bytes'].meaning}"
    assert lines[1:3] == [f"    {root}/train/alpha/nothing.png: 0 bytes", f"    -> {FAULTS['zero-bytes'].advice}"]
    assert lines[-1] == "15 files checked, 1 error, 1 warning: training may not start"


def test_the_first_files_are_printed_and_all_are_reported(root, tmp_path, capsys):
    for index in range(5):
        (root / f"train/backgrounds/{index}.png").touch()
    FAULTY["wrong_extension"](root)
    for suffix in ("csv", "JSON"):
        options = [*folder_options(root), "--num", "2", "--report", str(tmp_path / f"report.{suffix}")]
        assert check_dataset.main(options) == 1
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(":")[0] for line in lines[1:3]] == [
            f"    {root}/train/backgrounds/{index}.png" for index in range(2)
        ]
        assert lines[3] == "    ... and 3 more"
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert json.loads((tmp_path / "report.JSON").read_text()) == {"num_files": 18, "findings": rows}
    assert [row["code"] for row in rows] == ["zero-bytes"] * 5 + ["wrong-extension"]
    assert rows[5] == {
        "severity": "warning",
        "code": "wrong-extension",
        "path": f"{root}/train/backgrounds/really_png.jpg",
        "detail": "its content is PNG",
    }


def test_a_config_names_all_its_folders(tmp_path, capsys):
    make_healthy(tmp_path / "data")
    options = ["--config-file", "configs/demo.py", f"train.output_dir={tmp_path}", "--workers", "1"]
    assert check_dataset.main([*options, "train.seed=1"]) == 0  # options may stand among overrides
    assert check_dataset.main([*options[:2], *options[3:], options[2]]) == 0
    assert capsys.readouterr().out.startswith("10 files checked")  # all but the pairs
    (tmp_path / "data/train/rgba/cutout0.png").write_bytes(b"")
    (tmp_path / "data/test/image/test1.png").write_bytes(b"")
    assert check_dataset.main([*options[:2], *options[3:], options[2]]) == 1
    assert "error zero-bytes: 2 files" in capsys.readouterr().out
    assert check_dataset.main([*options[:2], "train.output_dirr=x"]) == 2
    assert "did you mean train.output_dir" in capsys.readouterr().err
    assert check_dataset.main(["--config-file", "nowhere.py"]) == 2
    assert capsys.readouterr().err.startswith("check_dataset.py: --config-file must be an existing")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["test.dataset.alpha_dir=null", "test.dataset.trimap_dir=null"],
            "expected a test batch with its ground truth",
        ),
        (["test.dataset.alpha_dir=null"], "expected a test batch with its ground truth"),
        (["train.dataset.crop_px=0"], "crop_px must"),
        (["train.dataset.crop.crop_factors=[0]"], "crop_factors must"),
        (["train.dataset.degradation.blur_probability=2"], "blur_probability must"),
        (["train.prefetch_factor=0"], "prefetch_factor must"),
    ],
)
def test_what_a_training_refuses_may_not_start(tmp_path, capsys, overrides, words):
    make_healthy(tmp_path / "data")
    options = ["--config-file", "configs/demo.py", f"train.output_dir={tmp_path}", "--workers", "1"]
    assert check_dataset.main([*options, *(f"dataloader.{override}" for override in overrides)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("check_dataset.py: ") and words in output.err and output.err.count("\n") == 1
    assert "training may start" not in output.out


def test_the_folders_of_a_mixture_are_those_of_its_members(tmp_path):
    for name in ("fg", "alpha", "photos", "rgba", "mattes"):
        (tmp_path / name).mkdir()
    fg, alpha, photos, rgba, mattes = (tmp_path / name for name in ("fg", "alpha", "photos", "rgba", "mattes"))
    composed = {
        "foreground_dirs": [str(fg), str(rgba)],
        "alpha_dirs": [str(alpha), None],
        "background_dirs": str(photos),
    }
    real = {"image_dirs": [str(photos)], "alpha_dirs": [str(mattes)], "crop_px": 512}
    train = {"dataset": {"datasets": [composed, real], "weights": [0.7, 0.3]}, "batch_size": 4}
    test = {"dataset": {"image_dir": "i", "trimap_dir": "t", "alpha_dir": None}}
    assert read_config_sets({"train": train, "test": test, "evaluator": {"image_dir": "x"}}) == [
        FolderSet("training", {"foreground": fg, "alpha": alpha}, 2),
        FolderSet("training", {"foreground": rgba}, 2),
        FolderSet("training", {"background": photos}, 2),
        FolderSet("training", {"image": photos, "alpha": mattes}, 3),
        FolderSet("test", {"image": Path("i"), "trimap": Path("t")}),
    ]


def test_photographs_need_alphas_and_something_must_be_there_as_in_training(tmp_path):
    with pytest.raises(DataError, match="no folder to check"):
        read_config_sets({"train": {"dataset": {"foreground_dirs": None}}, "test": None})
    with pytest.raises(DataError, match="no alphas are named for the images"):
        read_config_sets({"train": {"image_dirs": [str(tmp_path)], "alpha_dirs": None}})


def test_black_around_a_photograph_is_not_premultiplied(tmp_path):
    """A photograph as it is may have a black backdrop; a foreground with one would darken every edge."""
    colours, alpha = draw(32)
    for name in ("fg", "alpha"):
        (tmp_path / name).mkdir()
    save(tmp_path / "fg/night.png", np.rint(colours * (alpha[..., None] / 255)).astype(np.uint8))
    save(tmp_path / "alpha/night.png", alpha)
    places = {"alpha": tmp_path / "alpha"}
    as_foregrounds = check_sets([FolderSet("training", {"foreground": tmp_path / "fg", **places})])
    assert found(as_foregrounds, tmp_path) == [("premultiplied", "fg/night.png")]
    assert check_sets([FolderSet("training", {"image": tmp_path / "fg", **places})]).findings == []


def test_cut_outs_pairs_and_named_sets_of_photographs_are_checked_by_options(root, monkeypatch, capsys):
    layout = TrainingLayout("images", str(root), ("test/image",), ("test/alpha",), source="this test")
    monkeypatch.setitem(TRAINING_LAYOUTS, "own", layout)
    foregrounds, alphas = (str(root / "train/rgba"), str(root / "train/fg")), ("null", str(root / "train/alpha"))
    options = ["--foreground-dir", *foregrounds, "--alpha-dir", *alphas, "--image-dir", "own", "--workers", "1"]
    assert check_dataset.main(options) == 0
    assert capsys.readouterr().out == "10 files checked, 0 errors, 0 warnings: training may start\n"
    named = str(root / "test/image"), "--image-alpha-dir", str(root / "test/alpha")
    assert check_dataset.main(["--image-dir", *named, "--workers", "1"]) == 0
    assert capsys.readouterr().out.startswith("4 files")


def test_a_pack_is_checked_as_its_files_are(root, tmp_path):
    FAULTY["mixed_depth"](root)
    FAULTY["hard_mask"](root)
    FAULTY["duplicates"](root)
    merged = sets_of(root)[3]
    pairs = [ForegroundFile(path, root / f"train/alpha/{path.stem}.png") for path in find_images(root / "train/fg")]
    cutouts = [ForegroundFile(path) for path in find_images(root / "train/rgba")]
    make_pack([*pairs, *cutouts], tmp_path / "pack", 1, lambda number: None)
    report = check_sets([FolderSet("training", {"foreground": tmp_path / "pack"}), merged])
    expected = {"deep": "mixed-depth", "mask": "hard-mask", "mask_too": "hard-mask", "seen_too": "duplicate"}
    expected = {f"pack:{stem}": code for stem, code in expected.items()}
    assert {finding.path.stem: finding.code for finding in report.findings} == expected
    path = tmp_path / "pack" / "00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    report = check_sets([FolderSet("training", {"foreground": tmp_path / "pack"})])
    assert [finding.code for finding in report.findings if finding.code == "unreadable"] == ["unreadable"]


def test_what_two_places_of_one_set_have_is_taken_twice(root, tmp_path, capsys):
    rgba, photos = root / "train/rgba", str(root / "train/backgrounds")
    options = ["--background-dir", photos, "--workers", "1", "--foreground-dir", str(rgba)]
    assert check_dataset.main([*options, f"{rgba}/*1.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"warning taken-twice: 1 file: {FAULTS['taken-twice'].meaning}"
    assert lines[1] == f"    {rgba}/cutout1.png: by {rgba} and by {rgba}/*1.png"
    member = {"foreground_dirs": str(rgba), "background_dirs": photos}
    once = check_sets(read_config_sets({"train": {"one": member, "other": member}}))
    assert once.findings == []  # a mixture may have it in two of its sets
    make_pack([ForegroundFile(rgba / "cutout0.png")], tmp_path / "pack", 1, lambda number: None)
    twice = read_config_sets({"train": member | {"foreground_dirs": [str(tmp_path / "pack")] * 2}})
    assert [finding.code for finding in check_sets(twice).findings] == ["taken-twice"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--foreground-dir", "PACK", "--alpha-dir", "alpha"], "is a pack and holds its alphas, got"),
        (["--foreground-dir", "alpha", "--alpha-dir", "PACK"], "is a pack: name it by itself"),
        (["--background-dir", "PACK"], "is a pack: name it by itself"),
        (["--test-image-dir", "alpha", "--test-alpha-dir", "PACK"], "is a pack: name it by itself"),
        (["--test-image-dir", "FILE"], "is a file: expected a folder"),
        (["--background-dir", "FILE", "FILE"], "is a file: expected a folder"),
    ],
)
def test_a_pack_or_a_file_in_the_place_of_a_folder_is_one_line(tmp_path, capsys, options, words):
    for name in ("pack/pack.json", "alpha/file"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    places = {"PACK": tmp_path / "pack", "FILE": tmp_path / "alpha/file", "alpha": tmp_path / "alpha"}
    assert check_dataset.main([*(str(places.get(option, option)) for option in options), "--workers", "1"]) == 1
    output = capsys.readouterr()
    assert output.out == "" and words in output.err and output.err.count("\n") == 1


def test_accents_composed_in_two_ways_are_one_name(root):
    _, alpha = add_pair(root, "caf\u00e9", 34)
    alpha.rename(alpha.with_name("cafe\u0301.png"))
    assert found(check_sets(sets_of(root)), root) == []


def test_pairs_in_one_folder_are_told_apart_by_their_patterns(tmp_path):
    for name, index in (("a", 35), ("b", 36)):
        colours, alpha = draw(index)
        save(tmp_path / f"{name}.png", colours)
        save(tmp_path / f"{name}_alpha.png", alpha)
    (tmp_path / "b.png").unlink()
    folders = FolderSet("training", {"foreground": tmp_path / "*.png", "alpha": tmp_path / "*_alpha.png"})
    report = check_sets([folders])
    assert found(report, tmp_path) == [("missing-partner", "b_alpha.png")] and report.num_files == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "got neither"),
        (["--config-file", "configs/demo.py", "--foreground-dir", "fg"], "got both"),
        (["--alpha-dir", "a"], "--alpha-dir goes with --foreground-dir"),
        (["--image-alpha-dir", "a"], "--image-alpha-dir with --image-dir"),
        (["--test-image-dir", "a", "--workers", "0"], "--workers: must be at least 1"),
        (["--test-image-dir", "a", "--num", "-1"], "--num: must be at least 0"),
        (["--test-image-dir", "a", "--report", "a.txt"], "a.txt: expected a name that ends in .csv or .json"),
        (["--test-image-dir", "a", "--report", "nowhere/a.csv"], "there is no folder nowhere"),
        (["x=1", "--test-image-dir", "a"], "overrides belong to --config-file"),
    ],
)
def test_wrong_usage_is_status_2(capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        check_dataset.main(arguments)
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_what_is_not_there_is_one_message_and_status_1(root, tmp_path, capsys, closed_folder):
    for options, words in (
        (["--background-dir", str(tmp_path / "nowhere")], "nowhere"),
        (["--test-image-dir", str(tmp_path / "nowhere")], "nowhere"),
        (["--background-dir", str(closed_folder)], "Permission denied"),
    ):
        assert check_dataset.main([*options, "--workers", "1"]) == 1
        output = capsys.readouterr()
        assert output.out == "" and output.err.startswith("check_dataset.py: ") and words in output.err


@pytest.mark.slow
def test_real_sets_have_only_the_masks_that_they_have(matting_folder):
    """Twelve of the photographic cut-outs are masks, seen by eye; everything else is as it should be."""
    photographic, rendered = matting_folder / "cutouts_tuxpaint/rgba", matting_folder / "cutouts_fluent3d/rgba"
    test = matting_folder / "alphamatting"
    training = {
        "foreground_dirs": [str(photographic), str(rendered)],
        "background_dirs": str(matting_folder / "backgrounds/image"),
    }
    tests = [
        {"image_dir": str(test / "image"), "trimap_dir": str(test / trimaps), "alpha_dir": str(test / "alpha")}
        for trimaps in ("trimap1", "trimap2")
    ]
    report = check_sets(read_config_sets({"train": training, "test": tests}), 2)
    masks = {f"plants_flowers_flower{number}" for number in (1, 3, 4, 5, 6, 7, 9, 10)} | {
        "animals_birds_drake", "animals_birds_hen", "animals_fish_dolphinfish", "seasonal_christmas_Christmas_pudding"
    }  # fmt: skip
    assert {(finding.code, finding.path.stem) for finding in report.findings} == {("hard-mask", name) for name in masks}
