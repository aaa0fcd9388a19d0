"""Measure time and memory of this project and of another implementation, in one run.

    python tools/benchmark.py train-step
    python tools/benchmark.py train-step --sides ours --precision bf16 --device cuda
    python tools/benchmark.py train-step --precision bf16 --transformers-precision float32
    python tools/benchmark.py train-step --activation-checkpointing all
    python tools/benchmark.py metrics
    python tools/benchmark.py ports
    python tools/benchmark.py data
    python tools/benchmark.py foreground
    python tools/benchmark.py infer
    python tools/benchmark.py sizes
    python tools/benchmark.py clips --clips CLIPS --output ALPHAS
    python tools/benchmark.py infer --sides ours --sizes 3840x2160 7680x4320 --trimaps band --max-memory 8
    python tools/benchmark.py infer --sides ours-vitmatte ours-vitmatte-1024 rembg --sizes 2048x2048 --trimaps band
    python tools/benchmark.py backbone-scale --model MODEL --datasets alphamatting-trimap1 --enlarge 1 2
    python tools/benchmark.py backbone-scale --model MODEL --datasets alphamatting-trimap1 --scales 1 --rembg

train-step: forward, losses, backward and AdamW at 512 px, batch 2: our ViTMatte-S and transformers' VitMatte-S (a ViT
with relative positions), with the same losses and optimiser. The sides alternate in separate processes. "memory" is
the peak above the process with model and batch loaded.

metrics: all five metrics of an easy and a hard image on one core, ours and the plain definitions in scipy and
scikit-image; then `tools/evaluate.py` on a folder of images, with one worker and with two.

ports: common variants of Conn, Grad and MSE, and their definitions, on three drawn cases or your own files: the table
of docs/evaluate.md.

data: a training sample of `CompositionDataset` from JPEGs of 2000 x 1500 px (1.1 and 0.3 MB) and from a pack of them,
on one core, and bare decoding of the same files; then loaders with one worker and with two. Linux only.

infer: the first prediction of its size in a separate process: transformers' VitMatte-S, ours with the same weights,
and DINOv3-ViTMatte-S; random weights. Trimap "band" is a closed band around a subject, 20 % of the pixels; "unknown"
is unknown everywhere. The input of transformers is normalised and padded beforehand; ours is `Predictor.predict` on
8-bit arrays. "Above loading" is the peak resident size minus that with network and image loaded (on CUDA, what torch
has allocated). On CPUs Linux only. Two sides are not exact. "ours-vitmatte-1024" runs the backbone on a copy of
1024 px. "rembg" is rembg's own function with the same weights. It squashes the image to 1024 x 1024 px and resizes
alpha back, which is timed too. --busy 1 measures beside another program.

foreground: colours estimated on procedural mattes with known colours: the image's own, pymatting's defaults, ours; then
time and memory of a large image.

sizes: the tables of docs/model_zoo.md. Parameters and operations are counted on the device "meta", the memory of a
training step on fake tensors, which have a size and no data. --measure also runs real steps on the CPU, each column in
a separate process, and prints the result in brackets (Linux only).

backbone-scale: metrics and seconds of a model folder on test sets, with the backbone on copies of several sizes (see
--backbone-px of tools/predict.py). --enlarge enlarges the images, so that size and not content changes. --rembg adds
rembg's way, with the same network. Alpha is compared with that of the first row.

clips: mattes the clips of tools/dataset/make_clips.py frame by frame with --auto, with keyframes, and with keyframes
and stability; tools/evaluate.py --video measures the alphas (docs/keyframes.md).

Exit status: 0 measured, 1 a side failed, 2 wrong usage. Report the ratio: times of a shared machine drift.
"""

import _root  # noqa: F401

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from runtime.devices import cpu_features
from runtime.errors import UserError
from runtime.threads import num_cores
from tools.benchmarks import backbone_scale, clips, data, foreground, infer, metrics, ports, sizes, train_step


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line (`sys.argv` by default) and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module, summary in (
        ("train-step", train_step, "forward, losses, backward, AdamW"),
        ("metrics", metrics, "SAD, MSE, MAD, Grad and Conn"),
        ("ports", ports, "variants of Conn, Grad and MSE"),
        ("data", data, "samples of the training loader"),
        ("infer", infer, "alpha of an image"),
        ("foreground", foreground, "colours of cut-outs"),
        ("sizes", sizes, "parameters, operations and memory of the recipes"),
        ("clips", clips, "alphas of test clips with and without keyframes and stability"),
        ("backbone-scale", backbone_scale, "quality and time with the backbone on a reduced copy"),
    ):
        command = commands.add_parser(name, help=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    print(f"CPU: {num_cores()} cores, {', '.join(cpu_features()) or 'unknown features'}", flush=True)
    try:
        options.run(options)
    except (OSError, UserError, subprocess.CalledProcessError, BrokenProcessPool) as error:
        sys.exit(f"benchmark.py: {error}")


if __name__ == "__main__":
    main()
