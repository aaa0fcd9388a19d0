"""Data sets of composites for training, and of folders with images, trimaps and alphas; both check their folders."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from data.augment.degradation import DegradeImage
from data.augment.random_crop import DrawView
from data.augment.tone_jitter import JitterTones
from data.augment.transforms import CompositeImage, JitterColour, MakeTrimap, Sample
from data.augment.warp import crop_background, draw_interpolation, merge_layers, sample_layer
from data.datasets.samples import DEGRADATION_STREAM, TONES_STREAM, TrainingSet, as_item, as_tensor
from data.image_io.formats import image_name
from data.image_io.images import EncodedImage, read_alpha, read_image
from data.loader.sampler import Key
from data.sources.discovery import AlphaFolders, Folders, find_backgrounds, find_foregrounds
from data.sources.foreground_colour import DecontaminatedForeground
from data.sources.foregrounds import Foreground
from data.sources.layouts import COMPOSITION_1K, check_folders, check_same_size, find_all, match_by_name
from data.trimap import read_strict_trimap, read_trimap
from data.validation import check_number

NO_TEST = "A run without a test set has dataloader.test=null."
FOLDER_LAYOUT = f"{COMPOSITION_1K.describe()}\n{NO_TEST}"
OTHER_FOLDERS = f"Name folders that are there as image_dir, trimap_dir and alpha_dir. {NO_TEST}"
PARTNERS = "Image, trimap and alpha share their name, suffixes aside."


class CompositionDataset(TrainingSet):
    """Foregrounds composited over backgrounds, paired anew for every sample and every epoch.

    Foregrounds take turns, so that over the epochs each is used equally often. Backgrounds and second foregrounds are
    drawn. The default ranges are those of the GCA line; `crop_factors` are the 320, 480, 640 to 320 px of Deep Image
    Matting (Xu et al. 2017, section 4). Each image is sampled by a random interpolation: nearest, linear, cubic or
    Lanczos. Items are those of `TrainingSet`.

    Args:
        foreground_dirs: folder or folders of foregrounds, patterns, packs or names of sets; see
            `data.sources.discovery`.
        background_dirs: folder or folders of backgrounds, patterns or names of sets.
        alpha_dirs: one folder for each of `foreground_dirs`, with an alpha of the same name for each foreground. None
            for foregrounds that contain their alphas (RGBA, packs, names of sets), or for all of them.
        samples_per_epoch: see `TrainingSet`, as for `crop_px` and `seed`.
        merge_probability: how often a second foreground is laid under the first, stretched to its size.
        crop: position of a crop; see `DrawView`. None takes its defaults, as for the next two.
        trimap: see `MakeTrimap`; radii of 0 to 14 px are kernels of 1 to 29 px.
        colour: of the foreground; see `JitterColour`.
        estimates_foreground: the foregrounds have the colours of a photograph; see `data.sources.foreground_colour`.
        tones: of foreground and background separately; see `JitterTones`. It has its own random generator.
        degradation: of the image; see `DegradeImage`. It has its own random generator.

    Raises:
        FileNotFoundError: folders are missing or empty, or foregrounds and alphas lack their partners.
        DataError: two files of one name; on reading, foreground and alpha of different size.
        ConfigError: a setting that is out of its range.
    """

    def __init__(
        self,
        foreground_dirs: Folders,
        background_dirs: Folders,
        alpha_dirs: AlphaFolders = None,
        *,
        samples_per_epoch: int,
        crop_px: int = 512,
        seed: int = 0,
        merge_probability: float = 0.5,
        crop: DrawView | None = None,
        trimap: MakeTrimap | None = None,
        colour: JitterColour | None = None,
        estimates_foreground: bool = False,
        tones: JitterTones | None = None,
        degradation: DegradeImage | None = None,
    ) -> None:
        super().__init__(samples_per_epoch, crop_px, seed)
        check_number("merge_probability", merge_probability, 0, 1)
        self.foregrounds: list[Foreground]
        self.foregrounds, self.backgrounds = find_all(
            partial(find_foregrounds, foreground_dirs, alpha_dirs), partial(find_backgrounds, background_dirs)
        )
        if estimates_foreground:
            self.foregrounds = [DecontaminatedForeground(foreground) for foreground in self.foregrounds]
        self.merge_probability = merge_probability
        self.draw_view = crop or DrawView()
        self.transforms = (
            (colour or JitterColour(), None),
            (trimap or MakeTrimap(), None),
            (tones, TONES_STREAM),
            (CompositeImage(), None),
            (degradation, DEGRADATION_STREAM),
        )

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        rng = self.generator(key)
        sample = self._cut_out(*self.choose(key, rng), rng)
        for transform, stream in self.transforms:
            if transform is not None:
                sample = transform(sample, rng if stream is None else self.generator(key, stream))
        return as_item(sample)

    def choose(self, key: Key, rng: np.random.Generator) -> tuple[list[Foreground], Path]:
        """Choose the foregrounds of a sample, the upper one first, and its background.

        Args:
            key: (epoch, index).
            rng: of this sample, not used before.
        """
        chosen = [self.turn(key, len(self.foregrounds))]
        if rng.random() < self.merge_probability:
            chosen.append(int(rng.integers(len(self.foregrounds))))
        background = self.backgrounds[rng.integers(len(self.backgrounds))]
        return [self.foregrounds[number] for number in chosen], background

    def _cut_out(self, chosen: Sequence[Foreground], background: Path, rng: np.random.Generator) -> Sample:
        """Draw a view on the first foreground, and sample all through it."""
        sources = [foreground.open() for foreground in chosen]
        crop_px = self.crop_px
        view = self.draw_view(crop_px, sources[0].size, sources[0].unknown_points(rng), rng)
        layers = [
            sample_layer(source, view.from_image(source.size), crop_px, draw_interpolation(rng)) for source in sources
        ]
        alpha, foreground = merge_layers(layers)
        cropped = crop_background(EncodedImage(background), view.frame, view.window_px, crop_px, rng)
        return {"alpha": alpha, "foreground": foreground, "background": cropped}


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
        check_folders(folders, FOLDER_LAYOUT if set(folders) & set(COMPOSITION_1K.find()) else OTHER_FOLDERS)
        self.paths = match_by_name(folders, PARTNERS)
        self.read_trimap = read_trimap if alpha_dir is None else read_strict_trimap

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        paths = self.paths[index]
        readers = {"image": read_image, "trimap": self.read_trimap, "alpha": read_alpha}
        images = {name: reader(path) for (name, reader), path in zip(readers.items(), paths, strict=False)}
        for image, path in zip(images.values(), paths, strict=True):
            check_same_size(images["image"], paths[0], image, path)
        return {**{name: as_tensor(image) for name, image in images.items()}, "name": image_name(paths[0])}
