"""Draw samples of a training batch beside the predictions of the network."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.output.report import image_sheet, sheet_row
from runtime.errors import ConfigError

Arrays = Mapping[str, NDArray[np.float32]]


class SampleSheet:
    """Draws image, trimap, prediction, ground truth and their difference side by side, a row for each sample.

    Args:
        cell_px: longer side of each image.

    Raises:
        ConfigError: a side below 1 px.
    """

    def __init__(self, cell_px: int) -> None:
        if cell_px < 1:
            raise ConfigError(f"cell_px must be at least 1, got {cell_px}")
        self._cell_px = cell_px

    def __call__(self, batch: Arrays, outputs: Mapping[str, Arrays], path: Path) -> NDArray[np.float32]:
        """Draw and write a sheet.

        Args:
            batch: "image" (B, 3, H, W) RGB in [0, 1], "trimap" (B, 1, H, W) in {0, 0.5, 1}, "alpha" (B, 1, H, W).
            outputs: name of a network, "" for the trained one -> "pred_alpha" (B, 1, H, W) in [0, 1].
            path: of the file.

        Returns: the sheet, (H', W', 3) RGB in [0, 1].
        """
        rows = {}
        # The trainer handles values that are not finite; a sheet must not end the run.
        predictions = {name: np.nan_to_num(values["pred_alpha"]) for name, values in outputs.items()}
        for index, (image, trimap, alpha) in enumerate(
            zip(batch["image"], batch["trimap"], batch["alpha"], strict=True)
        ):
            first, *others = [(name, values[index, 0]) for name, values in predictions.items()]
            row = sheet_row(image.transpose(1, 2, 0), trimap[0], first[1], alpha[0])
            rows[f"sample {index}"] = {**row, **{f"{name} prediction": prediction for name, prediction in others}}
        return image_sheet(rows, path, self._cell_px)
