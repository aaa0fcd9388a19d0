"""Train on photographs with their own alphas, without compositing."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.augment.degradation import DegradeImage
from data.augment.random_crop import DrawView, View, scaling, translation
from data.augment.transforms import JitterColour, MakeTrimap, Sample
from data.augment.warp import draw_interpolation, read_window, warp
from data.datasets.samples import DEGRADATION_STREAM, TrainingSet, as_item
from data.image_io.images import EncodedImage, as_colours, read_raw_alpha, to_float
from data.loader.sampler import Key
from data.sources.discovery import AlphaFolders, Folders, find_real_images
from data.sources.foregrounds import Box, DecodedAlpha, average
from data.sources.layouts import check_equal_sizes


class RealImageDataset(TrainingSet):
    """Random crops of photographs and their alphas, without compositing: image and background belong together.

    Photographs take turns, and the default ranges are those of `CompositionDataset`. A crop never leaves its
    photograph, see `DrawInnerView`. The colour of the whole crop is jittered by one draw, as a composite's foreground
    is. Items are those of `TrainingSet`.

    Args:
        image_dirs: place or places of photographs, see `data.sources.discovery`.
        alpha_dirs: one place for each of `image_dirs`, with an alpha of the same name; None for a layout's name.
        samples_per_epoch: see `TrainingSet`, as for `crop_px` and `seed`.
        crop: position of a crop; see `DrawView`. None takes its defaults, as for the next two. `max_enlargement` limits
            how far a photograph is enlarged to be a square of `square_px`.
        trimap: see `MakeTrimap`; radii of 0 to 14 px are kernels of 1 to 29 px.
        colour: see `JitterColour`; `hue_deg` 0 with `jitter_share` 0 leaves the colours as they are.
        degradation: of the image; see `DegradeImage`. It has its own random generator. In a mixture use the same
            settings as for composites, or the degradation shows which kind an image is.

    Raises:
        FileNotFoundError: folders are missing or empty, or photographs and alphas lack their partners.
        DataError: two files of one name; no place of alphas; on reading, photograph and alpha of different size.
        ConfigError: a setting that is out of its range.
    """

    def __init__(
        self,
        image_dirs: Folders,
        alpha_dirs: AlphaFolders = None,
        *,
        samples_per_epoch: int,
        crop_px: int = 512,
        seed: int = 0,
        crop: "DrawInnerView | None" = None,
        trimap: MakeTrimap | None = None,
        colour: JitterColour | None = None,
        degradation: DegradeImage | None = None,
    ) -> None:
        super().__init__(samples_per_epoch, crop_px, seed)
        self.photographs = find_real_images(image_dirs, alpha_dirs)
        self.draw_view = crop or DrawInnerView()
        self.jitter_colour = colour or JitterColour()
        self.make_trimap = trimap or MakeTrimap()
        self.degradation = degradation

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        rng = self.generator(key)
        image, alpha = self._cut_out(OpenPhotograph(*self.photographs[self.turn(key, len(self.photographs))]), rng)
        image = self.jitter_colour({"foreground": image, "alpha": np.ones_like(alpha)}, rng)["foreground"]
        sample: Sample = self.make_trimap({"image": image, "alpha": alpha}, rng)
        if self.degradation is not None:
            sample = self.degradation(sample, self.generator(key, DEGRADATION_STREAM))
        return as_item(sample)

    def _cut_out(self, photograph: "OpenPhotograph", rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        """Draw a random crop and sample image (S, S, 3) and alpha (S, S, 1) through it, float32 in [0, 1]."""
        view = self.draw_view(self.crop_px, photograph.size, photograph.unknown_points(rng), rng)
        window = read_window(photograph, view.from_image(photograph.size), self.crop_px)
        assert window is not None  # the view is inside
        layer = cv2.merge([*cv2.split(to_float(window.colours)), to_float(window.alpha)])
        layer = warp(layer, window, (self.crop_px, self.crop_px), draw_interpolation(rng)).clip(
            0, 1
        )  # cubic and Lanczos overshoot
        return layer[:, :, :3], layer[:, :, 3:]


class DrawInnerView(DrawView):
    """Draw a random crop inside the photograph, around an unknown pixel if the border allows it.

    Mirrored or repeated borders would teach the network images that no camera takes. So if the turned and sheared
    window is wider than the photograph, it shrinks until it fits, and then it is moved inside. The photograph's shorter
    side is no other limit, so a photograph that is scaled up may show more than that. A photograph smaller than the
    crop is enlarged as far as needed, whatever `max_enlargement` is.
    """

    def __call__(self, crop_px: int, size: tuple[int, int], points: NDArray, rng: np.random.Generator) -> View:
        frame = self._draw_frame(size, rng)
        affine = self._draw_affine(frame, rng)
        # The window's edges (1, 0) and (0, 1), taken back before the affine map, span this width and height.
        reach = np.abs(np.linalg.inv(affine[:2, :2])).sum(axis=1)
        window_px = min(crop_px * rng.choice(self.crop_factors), (frame / reach).min())
        centre = (points[0] + 0.5) * frame / size if len(points) else frame / 2
        half = np.minimum(window_px * reach, frame) / 2
        centre = affine @ [*centre.clip(half, frame - half), 1]
        from_frame = scaling(crop_px / window_px) @ translation(window_px / 2 - centre[:2]) @ affine
        return View(frame, window_px, from_frame)


class OpenPhotograph(DecodedAlpha):
    """A photograph and its alpha: an `OpenForeground` without hidden colours, so plain averages are right.

    Args:
        path: of the photograph.
        alpha_path: of its alpha, of equal size.
    """

    def __init__(self, path: Path, alpha_path: Path) -> None:
        super().__init__(read_raw_alpha(alpha_path))
        self._image = EncodedImage(path)
        check_equal_sizes(self._image.size(), path, self.size, alpha_path)

    def read(self, box: Box, reduction: int) -> tuple[NDArray, NDArray]:
        left, top, right, bottom = box
        alpha = average(self._alpha[top:bottom, left:right], reduction)
        colours = as_colours(self._image.read(reduction), self._image.path)
        if colours.shape[:2] == self._alpha.shape:  # at full size, whatever was asked for
            return average(colours[top:bottom, left:right], reduction), alpha
        top, left = top // reduction, left // reduction
        return colours[top : top + alpha.shape[0], left : left + alpha.shape[1]], alpha
