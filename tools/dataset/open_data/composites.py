"""Write test sets of composites."""

from collections.abc import Sequence
from pathlib import Path

from data.augment.transforms import JitterColour, MakeTrimap
from data.datasets.composition import CompositionDataset
from data.image_io.images import DataError, write_alpha, write_image
from data.sources.discovery import AlphaFolders, Folders
from data.sources.layouts import TEST_FOLDERS
from data.trimap import write_trimap


def write_test_set(
    foreground_dirs: Folders,
    background_dirs: Folders,
    output: Path,
    *,
    num: int,
    crop_px: int,
    seed: int,
    alpha_dirs: AlphaFolders = None,
    trimap_radius_px: Sequence[int] = (2, 14),
) -> None:
    """Write samples of the training pipeline, without merged foregrounds and colour jitter, to three folders.

    Composites of foreground 3 are named 0003_0.png, 0003_1.png and so on. Evaluations recognise these names as
    composites of one foreground, and give their intervals over foregrounds.

    Args:
        foreground_dirs: see `CompositionDataset`, as for `background_dirs` and `alpha_dirs`.
        output: folder of the set.
        num: composites; foregrounds alternate.
        crop_px: their side.
        seed: the same gives the same bytes.
        trimap_radius_px: smallest and largest erosion.

    Raises:
        DataError: one of the folders contains files, which would become part of the set.
        OSError, UserError: as `CompositionDataset`.
    """
    dataset = CompositionDataset(
        foreground_dirs,
        background_dirs,
        alpha_dirs,
        samples_per_epoch=num,
        crop_px=crop_px,
        seed=seed,
        merge_probability=0.0,
        trimap=MakeTrimap(trimap_radius_px),
        colour=JitterColour(0.0, 0.0),
    )
    folders = images, trimaps, alphas = [output / name for name in TEST_FOLDERS]
    for folder in folders:
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(f"{folder} holds files already: remove them, or name another output folder")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(num):
        sample = {key: value.numpy().transpose(1, 2, 0).squeeze() for key, value in dataset[0, index].items()}
        number, foreground = divmod(index, len(dataset.foregrounds))
        name = f"{foreground:04d}_{number}.png"
        write_image(images / name, sample["image"])
        write_trimap(trimaps / name, sample["trimap"])
        write_alpha(alphas / name, sample["alpha"])
