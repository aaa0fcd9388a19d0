"""A network over the images of a test set, for tools/evaluate.py."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray
from tqdm import tqdm

# What loads torch is imported where a network runs.
from data.image_io.formats import READABLE
from data.image_io.images import DataError, read_image, write_alpha
from data.sources.layouts import TestSet
from data.trimap import unknown_mask
from evaluation.folders import check_test_set
from evaluation.output.result_folder import read_or_make_trimap
from inference.jobs import check_folder
from runtime.processes import Ranks

UNFINISHED = "unfinished_predictions"


class Network(NamedTuple):
    """Where a network comes from: a config file and its weights, or a model folder or .onnx file (weights are None)."""

    source: Path
    weights: Path | None
    device: str | None
    views: str | None = None
    trusted_modules: Sequence[str] = ()
    """`views`: what alpha is averaged over, see `modeling.test_time_augmentation.AverageViews.parse`."""


def predict_test_set(
    test_set: TestSet, network: Network, pred_dir: Path, num_workers: int, ranks: Ranks
) -> dict[str, str | None]:
    """Run a network over the images of a test set and write its alphas as NAME.png.

    Until all are written they lie in a folder of their own, which the next run writes anew if this one is interrupted.

    Args:
        test_set: whose files are all checked before.
        network: what runs.
        pred_dir: folder to write; it must not hold pictures, of whatever network.
        num_workers: processes that check the files.
        ranks: processes that share the images.

    Returns: what a summary says of the network.

    Raises:
        OSError, UserError: something is wrong with files; the message says what.
    """
    unfinished = pred_dir / UNFINISHED

    def check() -> None:
        if pred_dir.is_dir() and any(path.suffix.lower() in READABLE for path in pred_dir.iterdir()):
            raise DataError(
                f"{pred_dir} holds pictures already: evaluate them without a network, remove them, or name another "
                "folder"
            )
        check_folder(pred_dir)

    ranks.of_first(check)
    import torch

    predict, config_file, weights = ranks.each(lambda: load_network(network, ranks))
    folders = (test_set.alpha_dir, test_set.trimap_dir, test_set.image_dir)
    checked = check_test_set(*folders, num_workers=num_workers, track=progress_bar("files", ranks), ranks=ranks)

    def digest_weights() -> str:
        with weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    digest = ranks.of_first(digest_weights)

    def write(name: str) -> None:
        files = checked[name]
        trimap = read_or_make_trimap(files, test_set.trimap_radius_px)
        assert trimap is not None, "a layout names one of the two"
        alpha = predict(read_image(files["image"]), trimap) if unknown_mask(trimap).any() else trimap  # no mask then
        write_alpha(unfinished / f"{name}.png", alpha)

    ranks.of_first(lambda: unfinished.mkdir(parents=True, exist_ok=True))
    share = ranks.share(list(checked))
    ranks.join(progress_bar("network", ranks)(map(write, share), len(share)))

    def finish() -> None:
        for name in checked:
            (unfinished / f"{name}.png").rename(pred_dir / f"{name}.png")
        shutil.rmtree(unfinished)

    ranks.of_first(finish)
    config_name = None if config_file is None else str(config_file)
    names = {"config_file": config_name, "weights": str(weights)}
    views = {"views": network.views} if network.views else {}
    return {**names, **views, "weights_sha256": digest, "torch": str(torch.__version__)}


def load_network(network: Network, ranks: Ranks) -> tuple[Callable[[NDArray, NDArray], NDArray], Path | None, Path]:
    """Load what gives alphas; what loads torch is imported here.

    Returns: image and trimap -> alpha, and the files of its config and its weights; an .onnx file is both in one.
    """
    from inference.formats.model_folder import CONFIG_FILE, WEIGHTS_FILE
    from inference.predictor import Predictor
    from modeling.test_time_augmentation import AverageViews

    source, weights, device, words, trusted = network
    views = AverageViews.parse(words) if words else None
    settings: dict[str, Any] = {"precision": "float32", "views": views, "trusted_modules": trusted}
    predictor = Predictor.load(source, weights, ranks.device(device or "auto"), **settings)
    if weights is not None:
        return predictor.predict, source, weights
    if source.is_dir():
        return predictor.predict, source / CONFIG_FILE, source / WEIGHTS_FILE
    return predictor.predict, None, source


def progress_bar(title: str, ranks: Ranks) -> Callable[[Iterable[Any], int], Iterable[Any]]:
    """Make what a process tracks its share of images by; the first draws it, where there is a terminal."""
    title = title if ranks.is_alone else f"{title}, rank 0 of {ranks.world_size}"
    return lambda items, num_images: tqdm(
        items, title, num_images, unit="image", disable=None if ranks.is_first else True
    )
