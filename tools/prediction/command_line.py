"""The command line of tools/predict.py."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.trimap import WIDTH_PERCENT
from inference.auto.labels import Point, parse_points
from inference.default_network import default_network
from inference.jobs import KINDS
from runtime.command_line import add_trust_option, integer_from, number_up_to
from runtime.errors import UserError
from tools.prediction.clips.command_line import add_clip_options, check_clip_options
from tools.prediction.steps import BASELINES
from tools.prediction.streams import STREAM

SETTINGS = ("device", "precision", "max_memory_gb", "is_compiled", "tile_px", "backbone_px", "views")
"""Arguments of `inference.predictor.Predictor.load` that command lines set."""

MAX_STOPS = 32  # twice those of half

USAGE = (
    "%(prog)s IMAGES (--auto | --points JSON | --scribbles FILE | --mask FILE | --trimap FILE | --trimap-dir FOLDER | "
    "--keyframes FOLDER) [options]\n"
    "       --help lists the options"
)


def parse(arguments: Sequence[str] | None, description: str) -> argparse.Namespace:
    """Read the command line; options that contradict each other end the process with status 2.

    Returns: the options; `settings` has the arguments of `Predictor.load` that were given. Without a network and a
        baseline, `model` is the default network, or None if there is none.
    """
    parser = argparse.ArgumentParser(
        usage=USAGE, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="image, folder of images, quoted pattern; - for stdin"
    )
    group = parser.add_argument_group("trimap, by one of")
    group.add_argument("--trimap", type=Path, metavar="FILE", help="trimap of a single image")
    group.add_argument("--trimap-dir", type=Path, metavar="FOLDER", help="trimaps")
    group.add_argument("--mask", type=Path, help="mask of a single image, or folder of masks; any size")
    group.add_argument(
        "--keyframes", type=Path, metavar="FOLDER", help="clip: a few trimaps or masks, named by frame number or time"
    )
    group.add_argument("--auto", action="store_true", help="find the subject")
    add_points_option(group)
    group.add_argument(
        "--scribbles",
        type=Path,
        metavar="FILE",
        help="strokes on a single image, white on the subject and black on the background, else grey or transparent",
    )
    group.add_argument(
        "--width-px",
        type=integer_from(1),
        help="width of the unknown band around a mask or what is clicked, half of it inside",
    )
    group.add_argument(
        "--width-percent",
        type=number_up_to(100),
        help=f"the same in percent of the longer side, also for --auto (default: {WIDTH_PERCENT:g})",
    )
    group.add_argument(
        "--threshold",
        type=number_up_to(1),
        help="threshold (0 to 1) for soft masks, such as JPEG files and network outputs",
    )
    group = parser.add_argument_group("alpha, by one of")
    group.add_argument(
        "--model",
        type=Path,
        help="model folder or .onnx file of tools/export.py, ViTMatte's folder of transformers, or OWNER/NAME on the "
        "Hugging Face hub",
    )
    group.add_argument("--config-file", type=Path, help="config of a network; needs --weights")
    group.add_argument("--weights", type=Path, help="trained checkpoint of the config")
    add_trust_option(group)
    group.add_argument("--baseline", choices=BASELINES, help="no network, but closed-form matting or a lower bound")
    group = parser.add_argument_group("how a network runs")
    add_network_options(group)
    group.add_argument(
        "--compile",
        action="store_true",
        default=None,
        dest="is_compiled",
        help="compile with torch.compile; starts slowly",
    )
    group.add_argument(
        "--tta", type=views, metavar="VIEWS", dest="views", help="augmentations: flips,rotations,0.75,1,1.25"
    )
    group = parser.add_argument_group("what is written")
    group.add_argument("--output", type=Path, help="file for one image, otherwise folder; names are kept")
    group.add_argument("--as", choices=KINDS, dest="kind", help="result (default: alpha with a trimap, else rgba)")
    group.add_argument("--background", help="composite over this colour (teal, '#20a040') or image")
    group.add_argument("--premultiplied", action="store_true", help="rgba: colours multiplied by alpha")
    group.add_argument(
        "--colour",
        choices=("keep", "srgb"),
        default="keep",
        help="colour space of cut-outs and composites: the photograph's with its profile (default), or sRGB",
    )
    group.add_argument(
        "--bits",
        type=int,
        choices=(8, 16, 32),
        help="bits per value (default: 8; of EXR the image's 16 or 32, else 16)",
    )
    group.add_argument(
        "--linear", action="store_true", help="composite: blend in linear light, as EXR always does, not stored values"
    )
    group.add_argument(
        "--exposure",
        type=stops,
        default=0.0,
        metavar="STOPS",
        help="brighten EXR images by 2 ** STOPS before they are shown to the network, and in other formats",
    )
    group.add_argument(
        "--exr-layers",
        action="store_true",
        help="EXR cut-outs: add layers of straight colours (foreground), alpha and trimap",
    )
    group.add_argument(
        "--format",
        choices=("png", "tif", "webp", "jpg", "exr"),
        help="format of images if --output names no file (default: png); jpg only for composites",
    )
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="make only missing files")
    existing.add_argument("--overwrite", action="store_true", help="replace existing files")
    group.add_argument("--watch", action="store_true", help="matte what appears in a folder, until Ctrl-C")
    add_clip_options(parser)
    options = parser.parse_args(arguments)
    options.has_format, options.format = bool(options.format), options.format or "png"
    if "" in options.images:
        parser.error("IMAGES holds an empty name: is a variable of the shell not set?")
    is_clicked = bool(options.points or options.scribbles)
    places = (options.trimap, options.trimap_dir, options.mask, options.keyframes)
    if sum(map(bool, (*places, options.auto, is_clicked))) != 1:
        parser.error(
            "give exactly one of --auto, --points with or without --scribbles, --mask, --trimap, --trimap-dir, "
            "--keyframes"
        )
    if options.width_px and options.width_percent:
        parser.error("give --width-px or --width-percent, not both")
    if options.threshold and not options.mask:
        parser.error("--threshold is for --mask")
    if options.width_px and not (options.mask or options.keyframes or is_clicked):
        parser.error("--width-px is for --mask, --keyframes, --points and --scribbles")
    if options.width_percent and (options.trimap or options.trimap_dir):
        parser.error("--width-percent is for --mask, --keyframes, --auto, --points and --scribbles")
    check_streams(parser, options)
    check_clip_options(parser, options)
    if sum(map(bool, (options.model, options.config_file, options.baseline))) > 1:
        parser.error("give one of --model, --config-file with --weights, and --baseline")
    if bool(options.config_file) != bool(options.weights):
        parser.error("--config-file and --weights belong together")
    if not (options.model or options.config_file or options.baseline):
        options.model = default_network()
    options.settings = network_settings(options)
    if options.settings and not (options.model or options.config_file):
        parser.error(
            "--device, --precision, --max-memory, --compile, --tile-px, --backbone-px and --tta need a network: give "
            "--model, or --config-file with --weights"
        )
    has_background = options.background is not None
    options.kind = options.kind or (
        "composite" if has_background else "alpha" if options.trimap or options.trimap_dir else "rgba"
    )
    if options.kind == "composite" and not has_background:
        parser.error("--as composite needs a background: add --background with a colour or an image")
    if has_background and options.kind != "composite":
        parser.error(f"--background makes a composite: leave out --as {options.kind}")
    if options.background == "":
        parser.error("--background needs a colour or an image")
    if options.linear and options.kind != "composite":
        parser.error("--linear is for --as composite")
    if options.exr_layers and options.kind != "rgba":
        parser.error("--exr-layers is for --as rgba")
    if options.premultiplied and options.kind != "rgba":
        parser.error("--premultiplied is for --as rgba")
    return options


def add_points_option(group: argparse._ActionsContainer) -> None:
    """Add --points, clicks on one image; see `tools.prediction.steps.check_points`."""
    group.add_argument(
        "--points",
        type=points,
        metavar="JSON",
        help="clicks on a single image, 1 on the subject and 0 on the background: '[[x,y,1],[x,y,0]]'",
    )


def add_network_options(group: argparse._ActionsContainer, default_precision: str = "auto, by the device") -> None:
    """Add the options of how a network runs that all command lines have; see `Predictor.load`."""
    group.add_argument("--device", help="cpu, cuda ... (default: the best available)")
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bf16"),
        help=f"precision of the network (default: {default_precision})",
    )
    group.add_argument(
        "--max-memory",
        type=number_up_to(math.inf),
        metavar="GB",
        dest="max_memory_gb",
        help="memory that may be in use, in 1e9 bytes",
    )
    group.add_argument("--tile-px", type=integer_from(1), help="largest side of the decoder's tiles")
    group.add_argument(
        "--backbone-px",
        type=backbone_px,
        metavar="{N,full}",
        help="the backbone sees a copy whose longer side has N pixels: faster on large images, not exact (default: "
        "full)",
    )


def network_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Predictor.load` among `SETTINGS` that a command line has and gave."""
    given = {name: getattr(options, name, None) for name in SETTINGS}
    return {name: value for name, value in given.items() if value is not None}


def check_streams(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with status 2 if - or --watch do not go with other options."""
    if STREAM in options.images:
        if len(options.images) > 1:
            parser.error(f"{STREAM} is one image from standard input: give no other images")
        if options.trimap_dir or (options.mask and options.mask.is_dir()):
            parser.error(f"{STREAM} has no name: give its trimap or mask as a file")
        if (options.resume or options.overwrite) and not options.output:
            parser.error(f"--resume and --overwrite are for files, and {STREAM} writes to standard output")
    if options.watch:
        if len(options.images) > 1 or not Path(options.images[0]).is_dir():
            parser.error(f"--watch needs one folder, got {' '.join(options.images)}")
        if options.overwrite:
            parser.error("--watch skips images that are matted already: leave out --overwrite")
        if options.trimap or options.points or options.scribbles or (options.mask and options.mask.is_file()):
            parser.error("--watch needs --auto, or a folder of trimaps or masks")


def points(text: str) -> list[Point]:
    """Read points; see `inference.auto.labels.parse_points`."""
    try:
        return parse_points(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def stops(text: str) -> float:
    """Read a number of stops, which may be negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_STOPS:
        raise argparse.ArgumentTypeError(f"must be a number from -{MAX_STOPS} to {MAX_STOPS}, got {text}")
    return value


def backbone_px(text: str) -> int | str:
    """Read full or a number of pixels; see `inference.network.TorchNetwork`."""
    if text == "full":
        return text
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be full or a number of pixels from 1, got {text}")
    return int(text)


def views(text: str) -> str:
    """Check the words of test-time augmentation."""
    from modeling.test_time_augmentation import AverageViews  # loads torch

    try:
        AverageViews.parse(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
