"""Terms of the images: which are free, and whether the manifest names all."""

import json

import pytest

from data.image_io.images import DataError
from inference.default_network import SHIPPED
from tests.helpers.open_data import ABSENT, COPYRIGHT, SOURCE, STAMPS
from tools.dataset.open_data import licences, sources


def test_terms_are_those_of_the_last_paragraph_that_covers_the_file():
    def of(name):
        return licences.debian_terms(f"usr/share/stamps/{name}", COPYRIGHT)

    assert of("animals/hen.png").licence == of("animals/cow1.png").licence == "CC-BY-4.0"
    assert of("animals/pig.png") == licences.Terms("GPL-2", "2002 Any One")  # and debian/* is no image
    names = "".join(f"\n {number} Any One" for number in range(9))
    named = f"Files:\n a/hen.png\nCopyright:{names}\nLicense: CC0\n\nFiles: b/hen.png\nLicense: GPL-2\n"
    five = "; ".join(f"{number} Any One" for number in range(5))
    assert licences.debian_terms("usr/share/stamps/a/hen.png", named) == licences.Terms("CC0", f"{five}; 4 others")
    assert licences.debian_terms("usr/share/stamps/b/hen.png", named).licence == "GPL-2"
    with pytest.raises(DataError, match="no licence.*covers"):
        licences.debian_terms("usr/share/x.png", COPYRIGHT.replace("Files: *", "Files: other/*"))
    with pytest.raises(DataError, match="without the file that states its terms"):
        licences.terms_of(SOURCE, f"{STAMPS}/animals/hen.png", {})
    record = json.dumps({"license": "MIT", "author": {"name": "Some One"}})
    assert licences.terms_of(ABSENT, "package/x.png", {"package/package.json": record}) == licences.Terms(
        "MIT", "Some One"
    )
    wheel = next(source for source in sources.SOURCES if source.package == "scikit-image")
    assert licences.terms_of(wheel, "skimage/data/camera.png", {}) == licences.Terms("CC0", "Lav Varshney")
    assert not any("none stated" in licence for source in sources.SOURCES for licence in source.licences.values())


@pytest.mark.parametrize(
    ("licence", "is_free"),
    [
        *((name, True) for name in ("CC0", "CC0-1.0", "public domain", "public-domain", "MIT", "Expat", "Apache-2.0")),
        *((name, True) for name in ("BSD-3-Clause", "BSD-2-clause", "CC BY 2.0", "CC-BY-4.0", "CC-BY-SA-2.5")),
        *((name, True) for name in ("GPL-2", "GPL-2+", "GPL-3+", "LGPL-2.1+")),
        *((name, False) for name in ("CC-BY-NC-4.0", "CC-BY-ND-3.0", "CC-BY-NC-SA-4.0", "CC BY-NC 2.0", "CC-BY")),
        *((name, False) for name in ("", "not stated", "none stated; from a benchmark", "GFDL-1.2+", "MIT-like")),
    ],
)
def test_only_free_licences_are_used(licence, is_free):
    assert (licences.Terms(licence, "Some One").fault() is None) == is_free
    assert licences.Terms("CC0", licences.NOT_STATED).fault() == "has no author"


def test_faults_of_a_manifest_and_its_folder_are_found(tmp_path):
    for folder in licences.IMAGE_FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    free = {"package": "stamps", "file": "hen.png", "licence": "GPL-2", "author": "Any One"}
    entries = {
        "train/rgba/drawn_hair_00000.png": {"drawn": True},
        "train/rgba/hen.png": free,
        "train/backgrounds/sea.jpg": free | {"licence": "CC-BY-NC-4.0"},
        "test/rgba/pig.png": {"licence": "CC0", "author": "Any One"},
    }
    entries["train/rgba/drawn_fur_00001.png"] = {"drawn": True, "photograph": "sea"} | entries[
        "train/backgrounds/sea.jpg"
    ]
    for name in (*entries, "test/backgrounds/other.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "train/rgba/hen.png").unlink()
    faults = [
        "train/backgrounds/sea.jpg is under the licence 'CC-BY-NC-4.0', which is not among the free ones",
        "test/rgba/pig.png has no origin",
        "train/rgba/drawn_fur_00001.png is under the licence 'CC-BY-NC-4.0', which is not among the free ones",
    ]
    assert licences.find_faults({"pictures": entries}) == faults
    assert licences.find_faults({"pictures": entries}, tmp_path) == [
        *faults,
        "test/backgrounds/other.jpg has no entry in the manifest",
        "train/rgba/hen.png is in the manifest, but not in the folder",
    ]


def test_the_shipped_network_learnt_from_free_images():
    if not SHIPPED.is_dir():
        pytest.skip("no network is shipped")
    manifest = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["pictures"] and licences.find_faults(manifest) == []
