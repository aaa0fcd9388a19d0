"""Find photographs in Python packages, with the licence of each as its package states it."""

import importlib.util
from pathlib import Path

# a file inside its package: the licence, and "by" whom the photograph is
TRAIN_PHOTOGRAPHS = {
    "skimage/data/astronaut.png": "public domain by NASA",
    "skimage/data/camera.png": "CC0 by Lav Varshney",
    "skimage/data/grass.png": "CC0 by Linolafett",
    "skimage/data/gravel.png": "CC0 by CC0Textures (Gravel04)",
    "skimage/data/brick.png": "CC0 by CC0Textures (Bricks25)",
    "skimage/data/motorcycle_left.png": "none stated; from the Middlebury 2014 stereo benchmark",
    "sklearn/datasets/images/china.jpg": "CC BY 2.0 by danielbuechele",
    "sklearn/datasets/images/flower.jpg": "CC BY 2.0 by vultilion",
}
TEST_PHOTOGRAPHS = {
    "skimage/data/chelsea.png": "CC0 by Stefan van der Walt",
    "skimage/data/coffee.png": "CC0 by Rachel Michetti",
    "skimage/data/rocket.jpg": "public domain by SpaceX",
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
