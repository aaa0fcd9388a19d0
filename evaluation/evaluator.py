"""The metrics inside training: a detectron2 evaluator that gives what `tools/evaluate.py` gives on written files."""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from data.images import to_uint8, write_alpha
from data.trimap import unknown_mask
from evaluation.metrics import PROTOCOLS, average, measure
from evaluation.report import format_table

logger = logging.getLogger(__name__)


class MattingEvaluator(DatasetEvaluator):
    """Averages SAD, MSE and MAD on the unknown region over the images of all ranks, each image counted once.

    Prediction and truth are rounded to 8 bit, as they would be in files; per image only the numbers are kept.

    Args:
        output_dir: folder to write the predictions to as NAME.png; None writes none.
    """

    def __init__(self, output_dir: str | Path | None = None) -> None:
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.rows: dict[str, dict[str, float]] = {}

    def reset(self) -> None:
        """Forget what was measured."""
        self.rows = {}

    def process(self, inputs: Mapping[str, Any], outputs: Mapping[str, torch.Tensor]) -> None:
        """Measure a batch.

        Args:
            inputs: "alpha" (B, 1, H, W) in [0, 1], "trimap" (B, 1, H, W) in {0, 0.5, 1}, "name" of B texts, which tell
                images apart: a name that was seen before is the same image again and counts once.
            outputs: "pred_alpha" (B, 1, H, W) in [0, 1].

        Raises:
            ValueError: there is no truth, or shapes differ.
        """
        if "alpha" not in inputs:
            raise ValueError(f"expected a test batch with its truth under 'alpha', got {sorted(inputs)}: set alpha_dir")
        predictions, truths = (alpha.float().cpu().numpy() for alpha in (outputs["pred_alpha"], inputs["alpha"]))
        regions = unknown_mask(inputs["trimap"]).cpu().numpy()
        for name, prediction, truth, region in zip(inputs["name"], predictions, truths, regions, strict=True):
            self.rows[name] = measure(to_uint8(prediction[0]), to_uint8(truth[0]), region[0])
            if self.output_dir is not None:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                write_alpha(self.output_dir / f"{name}.png", prediction[0])

    def evaluate(self) -> "OrderedDict[str, dict[str, float]]":
        """Average over the images of all ranks.

        Returns: {"matting": metric -> value}, in natural units (MSE 0.0061, not 6.1), the same on every rank; the log
            of the first rank shows them in the units of the field.

        Raises:
            ValueError: no image was processed on any rank.
        """
        rows = {name: row for part in comm.all_gather(self.rows) for name, row in part.items()}
        averages = average(rows.values())
        if comm.is_main_process():
            logger.info("%s\n%s", PROTOCOLS["dim"].description, format_table([{"images": len(rows), **averages}]))
        return OrderedDict(matting=averages)
