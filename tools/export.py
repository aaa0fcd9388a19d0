"""Export a network to a model folder or ONNX file, which runs without detectron2, config and checkpoint.

    python tools/export.py --config-file configs/ViTMatte_S_100ep.py --weights output/s/model_best.pth --output models/s
    python tools/export.py --from-vitmatte ViTMatte_S_Com.pth --output models/vitmatte_s
    python tools/export.py --from-vitmatte vitmatte-small-composition-1k --output models/vitmatte_s_hf
    python tools/export.py --model models/vitmatte_s --format onnx --output models/vitmatte_s.onnx
    python tools/export.py --model models/vitmatte_s --format onnx --signature pixel_values --size 1024 --output f.onnx
    python tools/export.py --model models/vitmatte_s --format transformers --output models/vitmatte_s_hf
    python tools/export.py --model models/vitmatte_s --push OWNER/NAME

--from-vitmatte reads hustvl's .pth files (S or B), or a transformers folder such as hustvl/vitmatte-*, whose settings
are used or refused. The folder gets model.safetensors, config.json and LICENSE.txt, and is read again for a bit-exact
comparison. No code in the weights' files runs, and every tensor is accounted for. --precision float16 halves the size
of the folder. --format onnx writes one ONNX file instead, after onnxruntime has reproduced torch's alpha with it.
--signature pixel_values gives that file one input, image and trimap together, as programs made for ViTMatte expect.
--format transformers writes a folder that transformers' VitMatteForImageMatting loads; for ViTDet backbones alone.
--push uploads the written folder, or the one of --model, to the Hugging Face hub, with a model card.

Exit status: 0 written, 1 something is wrong with the files, 2 wrong usage.
"""

import _root  # noqa: F401

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from inference.formats.hub import REPOSITORY, find_source, push
from inference.formats.model_folder import (
    CONFIG_FILE,
    CONSTRUCTORS,
    LICENSE_FILE,
    WEIGHTS_FILE,
    ModelFolderError,
    read_model_folder,
    round_to_half,
    write_model_folder,
)
from inference.formats.onnx_export import CHECKED_SIZE, OPSET, SIGNATURES, write_onnx
from inference.formats.published_vitmatte import convert_published
from inference.formats.transformers_folder import write_transformers_folder
from modeling import ViTMatte
from modeling.conversion import choose_file, read_checkpoint
from runtime.command_line import add_trust_option, integer_from
from runtime.errors import UserError
from runtime.network_files import read_json, widened

LICENCES = {
    "ViT": """Built with DINOv3.

The backbone of this network is, or is trained from, a DINOv3 checkpoint. The weights come under the DINOv3 License
(https://ai.meta.com/resources/models-and-libraries/dinov3-license/): whoever passes this folder on passes that licence
on with it and says "Built with DINOv3". The owners of the training data may have set further terms.
""",
    "DINOv2": """Backbone from DINOv2.

The backbone of this network is, or is trained from, a DINOv2 checkpoint (https://github.com/facebookresearch/dinov2),
which comes under the Apache License 2.0. The owners of the training data may have set further terms.
""",
    "ViTDet": """ViTMatte weights.

Published ViTMatte checkpoints (https://github.com/hustvl/ViTMatte, arXiv:2305.15272) are their authors'. Their code is
under the MIT License; the weights come with the terms stated where they were downloaded, and are trained on sets
(Adobe's Composition-1k, Distinctions-646) whose owners give them out for research. Weights trained with this
architecture by others come with the terms of their makers and of their training data.
""",
}
"""Type of the backbone -> text of the licence note."""

LICENCE_PLACES = {
    "folder": f"{LICENSE_FILE} belongs to the folder",
    "onnx": "The licence note is in the file, under `licence` of its metadata",
    "transformers": f"{LICENSE_FILE} belongs to the folder",
}
"""Format -> place of the licence note."""


def from_config(
    config_file: Path, weights: Path, trusted: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a network of this project.

    Args:
        config_file, weights, trusted: see `engine.checkpoint.load_model.load_model`.

    Returns: its description, as `inference.formats.model_folder.build` takes it, and its tensors.

    Raises:
        UserError: a config or checkpoint that cannot be used (`ConfigError`, `CheckpointError`, `ModelFolderError`).
    """
    from engine.checkpoint.load_model import load_model
    from engine.config.config import load_config  # published weights are converted without detectron2

    description = describe("model", load_config(config_file, ("train", "model"), trusted).model)
    return description, load_model(config_file, weights, trusted).state_dict()


def describe(part: str, node: Any) -> dict[str, Any]:
    """Turn a node of a config into its description in config.json, without the criterion, which only training needs.

    Args:
        part: key of `CONSTRUCTORS`.
        node: a LazyCall, in its whole config.

    Raises:
        ModelFolderError: it builds something that a model folder cannot.
    """
    from omegaconf import OmegaConf

    target = node["_target_"]
    kind = next((kind for kind, constructor in CONSTRUCTORS[part].items() if constructor is target), None)
    if kind is None:
        known = " or ".join(CONSTRUCTORS[part])
        raise ModelFolderError(f"the config's {part} is {target}: a model folder can hold {known} alone")
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {"type": kind} | {
        str(name): describe(str(name), node[name]) if name in CONSTRUCTORS else value
        for name, value in values.items()
        if name not in ("_target_", "criterion")
    }


def from_vitmatte(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read published ViTMatte weights and print a description of them.

    Args:
        source: a file, or a transformers folder.

    Returns: as `from_config`.

    Raises:
        FileNotFoundError: a file is not there.
        UserError: it cannot be read (`ConversionError`), or is no published ViTMatte (`PublishedError`).
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} is missing: --from-vitmatte takes a .pth file or a transformers folder")
    weights, others = choose_file(source)
    folder = source if source.is_dir() else weights.parent
    has_settings = source.is_dir() or (folder / "config.json").is_file()
    state = read_checkpoint(weights)
    published = convert_published(state, folder if has_settings else None)
    layout, description, tensors = published.layout, published.description, published.tensors
    count = len(tensors)
    print(f"{weights.name}: ViTMatte-{published.size}, {layout} layout, {count} tensors read, {count} converted")
    for line in describe_left(published.left, others):
        print(line)
    mean, std = description["pixel_mean"], description["pixel_std"]
    reason = (
        "hustvl's code (ImageNet's)" if layout == "hustvl" else "transformers' processor (hustvl's code: ImageNet's)"
    )
    print(f"normalisation: mean {mean}, std {std}, as {reason}; config.json holds it")
    code = "hustvl's code" if layout == "hustvl" else "transformers' processor"
    print(f"padding: {description['padding']}, as {code}; config.json holds it")
    return description, tensors


def describe_left(left: Mapping[str, str], files: Sequence[str]) -> Iterator[str]:
    """Yield lines on ignored content: other copies of the network, other tensors, other files of the folder."""
    copies = Counter(match[1] for fate in left.values() if (match := re.search(r"another copy \((.+?)\)", fate)))
    others = {key.split(".")[0] for key, fate in left.items() if "another copy" not in fate}
    if copies:
        counts = ", ".join(f"{kind} ({count} tensors)" for kind, count in sorted(copies.items()))
        yield f"left aside, as other copies of the network: {counts}"
    if others:
        yield f"left aside, as not of the network: {', '.join(sorted(others))}"
    if files:
        yield f"left aside, other files of the folder: {', '.join(files)}"


def export_folder(options: argparse.Namespace, folder: Path) -> str:
    """Write the model folder of the command line's source, and read it again.

    Returns: a summary for people.

    Raises:
        OSError, UserError: see `from_config`, `from_vitmatte`, `write_model_folder` and `read_model_folder`.
    """
    if options.from_vitmatte:
        source = options.from_vitmatte.resolve().name
        description, tensors = from_vitmatte(options.from_vitmatte)
    else:
        source = f"{options.weights.name} with {options.config_file.name}"
        description, tensors = from_config(options.config_file, options.weights, options.trust_module)
    is_half = options.precision == "float16"
    stored = round_to_half(tensors) if is_half else tensors
    source += ", weights in half precision" * is_half
    write_model_folder(folder, description, stored, source, LICENCES[description["backbone"]["type"]])
    written, expected = read_model_folder(folder).state_dict(), widened(stored)
    assert written.keys() == expected.keys() and all(torch.equal(written[name], expected[name]) for name in expected)
    size_mb = (folder / WEIGHTS_FILE).stat().st_size / 1e6
    summary = f"{len(written)} tensors, {size_mb:.1f} MB; read again, they are identical"
    return f"{summary}; {describe_rounding(tensors, expected)}" if is_half else summary


def describe_rounding(tensors: Mapping[str, Tensor], rounded: Mapping[str, Tensor]) -> str:
    """Describe by how much rounding to float16 moved a weight at most, and in which tensor."""
    moved = {name: float((rounded[name] - tensors[name]).abs().max()) for name in tensors}
    name = max(moved, key=lambda name: moved[name])
    return f"rounding to float16 moved a weight by {moved[name]:.1e} at most, in {name}"


def read_licence(folder: Path) -> str:
    """Read the licence note of a model folder; "" if it has none, which a network does not need."""
    path = folder / LICENSE_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def export_onnx(folder: Path, path: Path, signature: str, size_px: int | None) -> str:
    """Write the ONNX file of a model folder, with its source and licence note; see `write_onnx`.

    Returns: a summary for people.

    Raises:
        OSError, UserError: see `read_model_folder` and `write_onnx`.
    """
    model = read_model_folder(folder)
    assert isinstance(model, ViTMatte)
    source = read_json(folder / CONFIG_FILE).get("source")
    difference = write_onnx(model, path, str(source), read_licence(folder), signature, size_px)
    height, width = (size_px, size_px) if size_px else CHECKED_SIZE
    return (
        f"opset {OPSET}, {path.stat().st_size / 1e6:.1f} MB; run by onnxruntime at {width} x {height} px, its alpha is "
        f"torch's within {difference:.1e}"
    )


def export_transformers(folder: Path, output: Path) -> str:
    """Write the transformers folder of a model folder, with its licence note.

    Returns: a summary for people.

    Raises:
        OSError, UserError: see `read_model_folder` and `write_transformers_folder`.
    """
    model = read_model_folder(folder)
    assert isinstance(model, ViTMatte)
    tensors = model.state_dict()
    write_transformers_folder(output, read_json(folder / CONFIG_FILE)["model"], tensors, read_licence(folder))
    written = f"{len(tensors)} tensors for VitMatteForImageMatting"
    if model.padding == "zero":
        return written
    return (
        f"{written}; transformers pads with zeros, this network by {model.padding}: alpha differs unless sides are "
        f"multiples of {model.size_divisibility}"
    )


def export(options: argparse.Namespace) -> Path:
    """Write --output, if it is given, and print what was written.

    Returns: the folder that --push uploads.

    Raises:
        OSError, UserError: something is wrong with the files.
    """
    with TemporaryDirectory() as temporary:
        model = options.model and find_source(options.model)
        folder = model or (options.output if options.format == "folder" else Path(temporary, "model"))
        if not model:
            written = export_folder(options, folder)
        if options.format == "onnx":
            written = export_onnx(folder, options.output, options.signature, options.size)
        elif options.format == "transformers":
            written = export_transformers(folder, options.output)
        licence = read_licence(folder).partition("\n")[0]
    if options.output:
        print(f"wrote {options.output}: {written}")
        if licence:
            print(f"{licence} {LICENCE_PLACES[options.format]}: pass it on with it.")
    return options.output or folder


def check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with status 2 if options contradict each other."""
    sources = [options.config_file, options.from_vitmatte, options.model]
    if sum(map(bool, sources)) != 1 or bool(options.config_file) != bool(options.weights):
        parser.error("give either --config-file and --weights, or --from-vitmatte, or --model")
    is_written = not options.model or options.format != "folder"
    if not is_written and not options.push:
        parser.error("--model is a model folder already: copy it, upload it by --push, or give another --format")
    if is_written != bool(options.output):
        parser.error("give --output" if is_written else "--push uploads the folder of --model: leave --output out")
    if options.push and (options.format == "onnx" or not REPOSITORY.fullmatch(options.push)):
        parser.error("--push needs OWNER/NAME, and uploads folders alone")
    if options.precision == "float16" and (options.format != "folder" or not is_written):
        parser.error("--precision float16 is for model folders that are written: other formats hold float32")
    if options.format != "onnx" and (options.size or options.signature != "image_trimap"):
        parser.error("--signature and --size are for --format onnx")
    if options.size and options.signature == "image_trimap":
        parser.error("--size is for --signature pixel_values: this project reads files that take any size")
    if is_written and (options.output.suffix.lower() == ".onnx") != (options.format == "onnx"):
        parser.error(f"--output {options.output} does not fit --format {options.format}: ONNX files end in .onnx")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and export.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", type=Path, help="config of the network")
    parser.add_argument("--weights", type=Path, help="trained checkpoint of the config")
    add_trust_option(parser)
    parser.add_argument("--from-vitmatte", type=Path, help="published ViTMatte weights: .pth file or folder")
    parser.add_argument("--model", type=Path, help="model folder instead, for the other formats and --push")
    parser.add_argument(
        "--precision", choices=("float32", "float16"), default="float32", help="precision of the folder's weights"
    )
    parser.add_argument("--format", choices=tuple(LICENCE_PLACES), default="folder", help="form of the output")
    parser.add_argument(
        "--signature", choices=tuple(SIGNATURES), default="image_trimap", help="inputs and output of an .onnx file"
    )
    parser.add_argument("--size", type=integer_from(1), help="height and width in px that alone the .onnx file takes")
    parser.add_argument("--output", type=Path, help="new or empty folder to write, or .onnx file")
    parser.add_argument("--push", metavar="OWNER/NAME", help="repository on the Hugging Face hub, gets the folder")
    options = parser.parse_args(arguments)
    check_usage(parser, options)
    missing, rest = f"; {options.output} is not complete, if it is there", ""
    try:
        folder = export(options)
        if options.push:
            missing = f", so {options.push} may lack it"
            rest = f". {folder} is complete: --model {folder} --push {options.push} uploads it" * bool(options.output)
            print(f"uploaded {folder} to {push(folder, options.push)}")
        return 0
    except (OSError, UserError) as error:
        status, line = 1, f"{error}{rest}"
    except KeyboardInterrupt:
        status, line = 130, f"interrupted{missing}{rest}"
    print(f"export.py: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
