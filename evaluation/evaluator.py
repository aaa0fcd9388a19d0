"""The metrics inside training: a detectron2 evaluator with the same results as `tools/evaluate.py` on files."""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from data.image_io.images import DataError, write_alpha
from data.trimap import unknown_mask
from evaluation.metrics import METRICS, PROTOCOLS, average, measure
from evaluation.output.report import format_table
from runtime.errors import ConfigError, UserError

logger = logging.getLogger(__name__)


class MattingEvaluator(DatasetEvaluator):
    """Averages the metrics over the images of all ranks, each image counted once.

    Under "dim" and "whole", prediction and ground truth are rounded to 8 bit, as in files. Under "float" the network's
    prediction is measured without rounding. The written files are rounded, so their metrics differ slightly.
    Only the metrics of each image are kept.

    Args:
        output_dir: folder to write the predictions to as NAME.png, 8 bit; None writes none.
        protocol: name of one of `evaluation.metrics.PROTOCOLS`.

    Attributes:
        metric_names: names of the results of `evaluate`, as "group/name".
        rows: name of an image -> result of `measure`, on this rank only.

    Raises:
        ConfigError: no protocol has this name.
    """

    metric_names = tuple(f"matting/{name}" for name in METRICS)

    def __init__(self, output_dir: str | Path | None = None, protocol: str = "dim") -> None:
        if protocol not in PROTOCOLS:
            raise ConfigError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.protocol = PROTOCOLS[protocol]
        self.rows: dict[str, dict[str, float]] = {}

    def reset(self) -> None:
        """Delete the results of earlier images."""
        self.rows = {}

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Raise a UserError if a test sample, or a batch of them, has no ground truth."""
        if "alpha" not in inputs:
            found = sorted(inputs)
            raise UserError(f"expected a test batch with its ground truth under 'alpha', got {found}: set alpha_dir")

    def process(self, inputs: Mapping[str, Any], outputs: Mapping[str, torch.Tensor]) -> None:
        """Measure a batch.

        Args:
            inputs: "alpha" (B, 1, H, W) in [0, 1], "trimap" (B, 1, H, W) in {0, 0.5, 1}, "name" of B texts. Samples
                with the same name are the same image and count once.
            outputs: "pred_alpha" (B, 1, H, W) in [0, 1].

        Raises:
            UserError: the batch has no ground truth, or predictions are outside [0, 1] or NaN.
        """
        self.check(inputs)
        predictions, alphas = (alpha.float().cpu().numpy() for alpha in (outputs["pred_alpha"], inputs["alpha"]))
        regions = unknown_mask(inputs["trimap"]).cpu().numpy()
        for name, prediction, alpha, region in zip(inputs["name"], predictions, alphas, regions, strict=True):
            self.rows[name] = measure(prediction[0], alpha[0], region[0], self.protocol)
            if self.output_dir is not None:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                write_alpha(self.output_dir / f"{name}.png", prediction[0])

    def evaluate(self) -> "OrderedDict[str, dict[str, float]]":
        """Average over the images of all ranks.

        Returns: {"matting": metric -> value}, in natural units (MSE 0.0061, not 6.1), the same on every rank. The first
            rank logs them in the units of the field, with the protocol and the number of images without a pixel to
            measure.

        Raises:
            UserError: no image was processed on any rank.
            DataError: no image has a pixel to measure, so all errors would be 0, like a perfect score.
        """
        rows = {name: row for part in comm.all_gather(self.rows) for name, row in part.items()}
        averages = average(rows.values())
        num_empty = sum(row["pixels"] == 0 for row in rows.values())
        if num_empty == len(rows):
            raise DataError(f"no trimap of the {num_empty} test images has an unknown pixel: nothing can be measured")
        if comm.is_main_process():
            empty = f"; images without such a pixel, their errors 0: {num_empty}" if num_empty else ""
            table = format_table([{"images": len(rows), **averages}])
            logger.info("%s%s\n%s", self.protocol.description, empty, table)
        return OrderedDict(matting=averages)
