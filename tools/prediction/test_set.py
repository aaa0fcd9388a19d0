"""A network over the images of a test set, for tools/evaluate.py."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

# What loads torch is imported where a network runs.
from data.image_io.formats import READABLE
from data.image_io.images import DataError, read_image, write_alpha
from data.sources.layouts import TestSet
from evaluation.folders import check_test_set
from evaluation.output.result_folder import read_or_make_trimap
from inference.jobs import check_folder
from runtime.processes import Ranks

UNFINISHED = "unfinished_predictions"

CHANGING = ("precision", "backbone_px", "views")
"""Settings that change alpha by more than rounding: a summary has those that were given."""


class Network(NamedTuple):
    """Where a network comes from: a config file and its weights, or a model folder or .onnx file (weights are None).

    `settings` are arguments of `inference.predictor.Predictor.load`. The precision is float32 by default.
    """

    source: Path
    weights: Path | None
    settings: Mapping[str, Any]
    trusted_modules: Sequence[str] = ()


def predict_test_set(
    test_set: TestSet, network: Network, pred_dir: Path, num_workers: int, ranks: Ranks
) -> dict[str, Any]:
    """Run a network over the images of a test set and write its alphas as NAME.png.

    Unfinished alphas lie in a subfolder. If the run is interrupted, the next one writes all of them again.

    Args:
        test_set: its files are all checked before.
        network: to run.
        pred_dir: folder to write; it must not hold images, of whatever network.
        num_workers: processes that check the files.
        ranks: processes that share the images.

    Returns: what a summary says about the network.

    Raises:
        OSError, UserError: something is wrong with files; the message says what.
    """
    unfinished = pred_dir / UNFINISHED

    def check() -> None:
        if pred_dir.is_dir() and any(path.suffix.lower() in READABLE for path in pred_dir.iterdir()):
            raise DataError(
                f"{pred_dir} holds images already: evaluate them without a network, remove them, or name another folder"
            )
        check_folder(pred_dir)

    ranks.broadcast(check)
    import torch

    from inference.formats.hub import find_source
    from inference.formats.model_folder import CONFIG_FILE, WEIGHTS_FILE
    from inference.predictor import Predictor
    from runtime.devices import device_of_rank

    source, weights, given, trusted = network
    settings = {"device": "auto", "precision": "float32"} | dict(given)
    with ranks.together():
        if ranks.world_size > 1:
            settings["device"] = device_of_rank(settings["device"], ranks.local_rank, ranks.local_size)
        source = source if weights else find_source(source)
        predictor = Predictor.load(source, weights, trusted_modules=trusted, **settings)
    config_file: Path | None = source
    if weights is None:  # an .onnx file is config and weights in one
        config_file, weights = (source / CONFIG_FILE, source / WEIGHTS_FILE) if source.is_dir() else (None, source)
    folders = (test_set.alpha_dir, test_set.trimap_dir, test_set.image_dir)
    checked = check_test_set(*folders, num_workers=num_workers, track=progress_bar("files", ranks), ranks=ranks)

    def digest_weights() -> str:
        with weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    digest = ranks.broadcast(digest_weights)

    def write(name: str) -> None:
        files = checked[name]
        trimap = read_or_make_trimap(files, test_set.trimap_radius_px)
        assert trimap is not None, "a layout names one of the two"
        write_alpha(unfinished / f"{name}.png", predictor.alpha(read_image(files["image"]), trimap))

    ranks.broadcast(lambda: unfinished.mkdir(parents=True, exist_ok=True))
    share = ranks.share(list(checked))
    ranks.join(progress_bar("network", ranks)(map(write, share), len(share)))

    def finish() -> None:
        for name in checked:
            (unfinished / f"{name}.png").rename(pred_dir / f"{name}.png")
        shutil.rmtree(unfinished)

    ranks.broadcast(finish)
    config_name = None if config_file is None else str(config_file)
    words = {name: given[name] for name in CHANGING if name in given}
    return {"config_file": config_name, "weights": str(weights), **words, "weights_sha256": digest,
            "torch": str(torch.__version__)}  # fmt: skip


def progress_bar(title: str, ranks: Ranks) -> Callable[[Iterable[Any], int], Iterable[Any]]:
    """Make the progress bar of a rank's share of images; the first rank draws it if there is a terminal."""
    title = title if ranks.world_size == 1 else f"{title}, rank 0 of {ranks.world_size}"
    return lambda items, num_images: tqdm(
        items, title, num_images, unit="image", disable=None if ranks.rank == 0 else True
    )
