"""The composition training set and ready-made image / trimap / alpha folders; both check their folders when built."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.images import DataError, find_images, read_alpha, read_image, read_raw_alpha, read_raw_image, read_raw_rgba
from data.layouts import COMPOSITION_1K, check_folders, check_same_size, match_by_name
from data.transforms import CompositeImage, CropAroundUnknown, JitterColour, MakeTrimap, MergeLayers, Sample
from data.trimap import read_strict_trimap, read_trimap

COMPOSITION_LAYOUT = """Expected layout, any picture format, one name for what belongs together:
  $DETECTRON2_DATASETS/                    default: datasets/
    Composition-1k/train/fg/NAME.jpg       foreground colours  | or one folder of RGBA cut-outs,
    Composition-1k/train/alpha/NAME.jpg    their alphas        | and no alpha folder
    train2017/*.jpg                        backgrounds, COCO for instance
Set DETECTRON2_DATASETS to the folder that holds these, or name other folders in the config."""

FOLDER_LAYOUT = COMPOSITION_1K.describe()

Folders = str | Path | Sequence[str | Path]


class CompositionDataset(Dataset):
    """Foregrounds composited over backgrounds, paired anew for every sample and every epoch.

    A sample is a function of (seed, epoch, index) alone, whatever worker makes it. Foregrounds take turns, so that over
    the epochs each is used equally often; backgrounds and second foregrounds are drawn. The default ranges are those of
    the GCA line; `crop_factors` are the 320, 480, 640 to 320 px of Deep Image Matting (Xu et al. 2017, section 4).

    Items: `dataset[epoch, index]` with 0 <= index < `samples_per_epoch` is a dict of float32 tensors in [0, 1]:
        "image" (3, S, S) RGB, "trimap" (1, S, S) in {0, 0.5, 1} and "alpha" (1, S, S).

    Args:
        foreground_dirs: folder or folders of foregrounds; RGBA cut-outs where `alpha_dirs` is None.
        background_dirs: folder or folders of backgrounds.
        alpha_dirs: as many folders as `foreground_dirs`, with an alpha of the same name for each foreground.
        samples_per_epoch: length of an epoch, at least 1.
        crop_px: side S of a sample, at least 1.
        seed: of everything random.
        merge_probability: how often a second foreground is laid under the first.
        square_probability: see `CropAroundUnknown`, as for all until `max_enlargement`.
        square_px: as there.
        rotation_deg: as there.
        rotation_min_px: as there.
        scale_range: as there.
        shear_deg: as there.
        flip_probability: as there.
        crop_factors: as there.
        max_enlargement: as there.
        trimap_radius_px: see `MakeTrimap`; 0 to 14 are kernels of 1 to 29 px.
        hue_deg: see `JitterColour`.
        jitter_share: see `JitterColour`.

    Raises:
        FileNotFoundError: folders are missing or empty, or foregrounds and alphas lack their partners.
        DataError: two files of one name; on reading, foreground and alpha of different size.
        ValueError: `samples_per_epoch`, `crop_px` or `trimap_radius_px` out of range.
    """

    def __init__(
        self,
        foreground_dirs: Folders,
        background_dirs: Folders,
        alpha_dirs: Folders | None = None,
        *,
        samples_per_epoch: int,
        crop_px: int = 512,
        seed: int = 0,
        merge_probability: float = 0.5,
        square_probability: float = 0.25,
        square_px: int = 640,
        rotation_deg: float = 30.0,
        rotation_min_px: int = 1024,
        scale_range: Sequence[float] = (0.8, 1.25),
        shear_deg: float = 10.0,
        flip_probability: float = 0.5,
        crop_factors: Sequence[float] = (1.0, 1.5, 2.0),
        max_enlargement: float = 2.0,
        trimap_radius_px: Sequence[int] = (0, 14),
        hue_deg: float = 40.0,
        jitter_share: float = 0.1,
    ) -> None:
        if samples_per_epoch < 1 or crop_px < 1:
            raise ValueError(f"samples_per_epoch and crop_px must be at least 1, got {samples_per_epoch} and {crop_px}")
        radii = tuple(trimap_radius_px)
        if len(radii) != 2 or not 0 <= radii[0] <= radii[1]:
            raise ValueError(f"trimap_radius_px must be (low, high) with 0 <= low <= high, got {radii}")
        foregrounds, backgrounds = as_paths(foreground_dirs), as_paths(background_dirs)
        alphas = None if alpha_dirs is None else as_paths(alpha_dirs)
        check_folders([*foregrounds, *(alphas or []), *backgrounds], COMPOSITION_LAYOUT)
        if alphas is not None and len(alphas) != len(foregrounds):
            raise DataError(f"{len(foregrounds)} foreground folders and {len(alphas)} alpha folders: give one for each")
        self.foregrounds: list[tuple[Path, Path | None]] = []
        if alphas is None:
            self.foregrounds += [(path, None) for folder in foregrounds for path in find_images(folder)]
        else:
            for pair in zip(foregrounds, alphas, strict=True):
                self.foregrounds += [(paths[0], paths[1]) for paths in match_by_name(pair, COMPOSITION_LAYOUT)]
        self.backgrounds = [path for folder in backgrounds for path in find_images(folder)]
        self.samples_per_epoch = samples_per_epoch
        self.seed = seed
        self.merge_probability = merge_probability
        self.transforms = (
            CropAroundUnknown(
                crop_px,
                square_probability,
                square_px,
                rotation_deg,
                rotation_min_px,
                scale_range,
                shear_deg,
                flip_probability,
                crop_factors,
                max_enlargement,
            ),
            MergeLayers(),
            JitterColour(hue_deg, jitter_share),
            MakeTrimap(trimap_radius_px),
            CompositeImage(),
        )

    def __len__(self) -> int:
        return self.samples_per_epoch

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        first = (epoch * self.samples_per_epoch + index) % len(self.foregrounds)
        chosen = [first]
        if rng.random() < self.merge_probability:
            chosen.append(int(rng.integers(len(self.foregrounds))))
        background = self.backgrounds[rng.integers(len(self.backgrounds))]
        sample: Sample = {
            "sources": [read_foreground(*self.foregrounds[number]) for number in chosen],
            "background": read_raw_image(background),
        }
        for transform in self.transforms:
            sample = transform(sample, rng)
        return {name: as_tensor(sample[name]) for name in ("image", "trimap", "alpha")}


class MattingFolder(Dataset):
    """Images with their trimaps and, where given, their true alphas, in folders matched by file name without suffix.

    Items: `dataset[i]`, in the order of names, is a dict: "image" (3, H, W) float32 RGB in [0, 1], "trimap" (1, H, W)
        float32 in {0, 0.5, 1}, "alpha" (1, H, W) float32 in [0, 1] where there is an alpha folder, and "name".

    Args:
        image_dir: folder of images.
        trimap_dir: folder of trimaps.
        alpha_dir: folder of alphas, or None; with it this is a test set, whose trimaps are read strictly.

    Raises:
        FileNotFoundError: a folder is missing or empty, or files lack their partners.
        DataError: two files of one name; on reading, sizes that differ or, beside alphas, trimaps of other values than
            0, 128 and 255.
    """

    def __init__(self, image_dir: str | Path, trimap_dir: str | Path, alpha_dir: str | Path | None = None) -> None:
        folders = [Path(folder) for folder in (image_dir, trimap_dir, alpha_dir) if folder is not None]
        check_folders(folders, FOLDER_LAYOUT)
        self.paths = match_by_name(folders, FOLDER_LAYOUT)
        self.read_trimap = read_trimap if alpha_dir is None else read_strict_trimap

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        paths = self.paths[index]
        readers = {"image": read_image, "trimap": self.read_trimap, "alpha": read_alpha}
        pictures = {name: reader(path) for (name, reader), path in zip(readers.items(), paths, strict=False)}
        for picture, path in zip(pictures.values(), paths, strict=True):
            check_same_size(pictures["image"], paths[0], picture, path)
        return {**{name: as_tensor(picture) for name, picture in pictures.items()}, "name": paths[0].stem}


def as_paths(folders: Folders) -> list[Path]:
    """Make a list of paths of one folder or several."""
    return [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]


def read_foreground(path: Path, alpha_path: Path | None) -> tuple[NDArray, NDArray]:
    """Read raw colours (H, W, 3) and raw alpha (H, W), from one RGBA file where `alpha_path` is None."""
    if alpha_path is None:
        return read_raw_rgba(path)
    colour, alpha = read_raw_image(path), read_raw_alpha(alpha_path)
    check_same_size(colour, path, alpha, alpha_path)
    return colour, alpha


def as_tensor(picture: NDArray) -> Tensor:
    """Turn (H, W) or (H, W, C) into a contiguous tensor (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(picture).transpose(2, 0, 1)))
