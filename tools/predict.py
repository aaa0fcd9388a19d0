"""Matte one image or a folder of images.

    python tools/predict.py --config-file configs/ViTMatte_S_100ep.py --weights output/s/model_final.pth \\
        --image photo.jpg --trimap trimap.png --output alpha.png
    python tools/predict.py --model models/s --image photo.jpg --trimap trimap.png --output alpha.png
    python tools/predict.py --baseline ramp --image merged --trimap trimaps --output output/ramp

With folders, files belong together by name without suffix, and the alphas are written as NAME.png. A model
folder (tools/export.py) needs no detectron2. The baselines need no network: "trivial" is 0.5 on every unknown pixel,
"ramp" the background's distance over the sum of both distances.
Exit status: 0 matted, 1 something is wrong with the files, 2 wrong usage.
"""

import _root  # noqa: F401

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from numpy.typing import NDArray
from tqdm import tqdm

from data.datasets import check_same_size
from data.images import LOSSLESS_SUFFIXES, DataError, read_image, write_alpha
from data.layouts import match_by_name
from data.trimap import ramp_alpha, read_trimap, trivial_alpha

FOLDER_LAYOUT = "An image and its trimap share their name without suffix."

Matte = Callable[[NDArray, NDArray], NDArray]

BASELINES: dict[str, Matte] = {
    "trivial": lambda image, trimap: trivial_alpha(trimap),
    "ramp": lambda image, trimap: ramp_alpha(trimap),
}


def find_pairs(image: Path, trimap: Path, output: Path) -> list[tuple[Path, Path, Path]]:
    """List (image, trimap, alpha to write) for one image or a folder.

    Raises:
        FileNotFoundError: a file or folder is missing, or files lack their partners.
        DataError: a file beside a folder, a suffix that loses something, an alpha that would replace an input.
    """
    for name, path in (("--image", image), ("--trimap", trimap)):
        if not path.exists():
            raise FileNotFoundError(f"{name} {path}: no such file or folder")
    if image.is_dir() != trimap.is_dir():
        raise DataError(f"--image {image} and --trimap {trimap}: expected two files or two folders, got one of each")
    if image.is_dir():
        matched = match_by_name([image, trimap], FOLDER_LAYOUT)
        pairs = [(pair[0], pair[1], output / f"{pair[0].stem}.png") for pair in matched]
    elif output.suffix.lower() in LOSSLESS_SUFFIXES:
        pairs = [(image, trimap, output)]
    else:
        suffixes = ", ".join(LOSSLESS_SUFFIXES)
        raise DataError(f"--output {output}: expected the name of a lossless picture ({suffixes}), such as alpha.png")
    inputs = {path.resolve() for pair in pairs for path in pair[:2]}
    for *_, alpha in pairs:
        if alpha.resolve() in inputs:
            raise DataError(f"--output {output}: {alpha} is an input and would be overwritten; name another place")
    return pairs


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and matte.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True, help="image, or folder of images")
    parser.add_argument("--trimap", type=Path, required=True, help="trimap, or folder of trimaps")
    parser.add_argument("--output", type=Path, required=True, help="alpha to write, or folder for them")
    parser.add_argument("--model", type=Path, help="model folder of tools/export.py")
    parser.add_argument("--config-file", type=Path, help="instead: config of a network")
    parser.add_argument("--weights", type=Path, help="its trained checkpoint")
    parser.add_argument(
        "--device", help="cpu, cuda ...; default: the config's, or for a model folder the best there is"
    )
    parser.add_argument("--baseline", choices=BASELINES, help="instead of a network")
    options = parser.parse_args(arguments)
    ways = [options.model, options.config_file, options.baseline]
    if sum(way is not None for way in ways) != 1 or bool(options.config_file) != bool(options.weights):
        parser.error("give one of --model, --config-file with --weights, and --baseline")
    if options.baseline is not None and options.device is not None:
        parser.error("--device is for a network: a baseline has none")
    try:
        pairs = find_pairs(options.image, options.trimap, options.output)
        if options.baseline:
            matte = BASELINES[options.baseline]
        else:
            from inference.predictor import Predictor  # the baselines work without timm

            source = options.model or options.config_file
            matte = Predictor.load(source, options.weights, options.device or "auto").predict
        for image_path, trimap_path, alpha_path in tqdm(pairs, unit="image", disable=len(pairs) == 1):
            image, trimap = read_image(image_path), read_trimap(trimap_path)
            check_same_size(image, image_path, trimap, trimap_path)
            alpha_path.parent.mkdir(parents=True, exist_ok=True)
            write_alpha(alpha_path, matte(image, trimap))
    except (OSError, ValueError) as error:  # DataError, CheckpointError and ConfigError are ValueErrors
        print(f"predict.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
