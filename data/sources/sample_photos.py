"""Find photographs in Python packages, with the licence of each as its package states it."""

import importlib.util
from pathlib import Path

# a file inside its package: the licence
TRAIN_PHOTOGRAPHS = {
    "skimage/data/astronaut.png": "no known copyright restrictions, released into the public domain (NASA)",
    "skimage/data/camera.png": "CC0 by the photographer (Lav Varshney)",
    "skimage/data/grass.png": "Creative Commons CC0",
    "skimage/data/gravel.png": "Creative Commons CC0",
    "skimage/data/brick.png": "Creative Commons CC0",
    "skimage/data/motorcycle_left.png": "none stated; from the Middlebury 2014 stereo benchmark",
    "sklearn/datasets/images/china.jpg": "CC BY 2.0, danielbuechele",
    "sklearn/datasets/images/flower.jpg": "CC BY 2.0, vultilion",
}
TEST_PHOTOGRAPHS = {
    "skimage/data/chelsea.png": "CC0 by the photographer (Stefan van der Walt)",
    "skimage/data/coffee.png": "CC0 by the photographer (Rachel Michetti)",
    "skimage/data/rocket.jpg": "released in the public domain (SpaceX)",
}


def package_folders(package: str) -> list[Path]:
    """List the folders of an installed package without importing it; empty if it is not installed."""
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def find_photograph(name: str) -> Path:
    """Locate a photograph inside an installed package, without importing the package.

    Args:
        name: `package/path/inside/it`.

    Raises:
        FileNotFoundError: the package is not installed, or came without the file.
    """
    package, _, inside = name.partition("/")
    folders = package_folders(package)
    for folder in folders:
        if (path := folder / inside).is_file():
            return path
    found = "the package without that file" if folders else "no such package"
    raise FileNotFoundError(f"expected the photograph {name} among installed packages, found {found}: run `make setup`")
