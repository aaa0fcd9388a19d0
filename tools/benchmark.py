"""Measure this project beside another implementation, in one run.

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
    python tools/benchmark.py infer --sides ours --sizes 3840x2160 7680x4320 --trimaps band --max-memory 8

train-step: a step is forward, losses, backward and AdamW at 512 px, batch 2, our ViTMatte-S against transformers'
VitMatte-S, a ViT with relative positions, under the same losses and optimiser. Each side runs in a process of its own,
in turn, so that its peak memory is its own; "memory" is the peak above what the process holds when model and batch are
loaded.

metrics: all five on a usual and on a hard picture, on one core, ours against the definitions written down with scipy
and scikit-image; then `tools/evaluate.py` on a folder of pictures, as whole processes with one worker and with two.

ports: what common variants of Conn, Grad and MSE make of three drawn cases, or of your own files, beside their
definition: the table of docs/evaluate.md.

data: a training sample of `CompositionDataset` from JPEGs of 2000 x 1500 (1.1 and 0.3 MB) and from a pack of them, on
one core, beside decoding the files that it needs, whole; then loaders with one worker and with two. Linux alone.

infer: the first prediction of its size in a process of its own, by transformers' VitMatte-S, by ours with the same
weights, and by DINOv3-ViTMatte-S, weights random. Trimaps: "band" is a closed band around a subject, 20 % of the
pixels, "unknown" is all unknown. Transformers' input is normalised and padded beforehand; ours is
`Predictor.predict` on 8-bit arrays. "Above loading" is the peak resident size less that with network and image loaded
(on CUDA what torch has allocated). Linux alone, for that on CPUs.

foreground: colours estimated on procedural mattes, whose own are known: the image's own, pymatting's as it comes, ours;
then time and memory of a large picture.

sizes: the tables of docs/model_zoo.md. Parameters and operations are counted on torch's device "meta", the memory of a
training step on fake tensors, which have a size and nothing else: a 7B takes no memory either. With --measure, real
steps are done on the CPU as well, each column in a process of its own; what it took stands in brackets (Linux alone).

Exit status: 0 measured, 1 a side failed, 2 wrong usage. Quote the ratio: times of a shared machine drift.
"""

import _root  # noqa: F401

import argparse
import subprocess
import sys
from collections.abc import Sequence

from runtime.errors import UserError
from tools.benchmarks import data, foreground, infer, metrics, ports, sizes, train_step


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line (`sys.argv` by default) and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module, summary in (
        ("train-step", train_step, "forward, losses, backward, AdamW"),
        ("metrics", metrics, "SAD, MSE, MAD, Grad and Conn"),
        ("ports", ports, "variants of Conn, Grad and MSE beside their definition"),
        ("data", data, "samples of the training loader"),
        ("infer", infer, "alpha of an image"),
        ("foreground", foreground, "colours without the background's"),
        ("sizes", sizes, "parameters, operations and memory of the recipes"),
    ):
        command = commands.add_parser(name, help=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (OSError, UserError, subprocess.CalledProcessError) as error:
        sys.exit(f"benchmark.py: {error}")


if __name__ == "__main__":
    main()
