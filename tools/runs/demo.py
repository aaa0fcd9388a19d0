"""Run all jobs in a few minutes on a CPU: data, conversion, training, evaluation, images. `make demo` runs it.

    python tools/runs/demo.py --seed 0 --output output/demo

It generates a small matting set, converts a tiny checkpoint in the DINOv3 layout (random weights, no download) and
trains `configs/demo.py`. On held-out composites it compares the trained network with the trivial alpha, with the
trimap's ramp, with the untrained network, and with the trained network on a grey image. It writes metrics.json,
loss_curve.png, results.md and sheet.png to the output folder. Exit status 1: the network missed a target.
"""

import _root  # noqa: F401

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from omegaconf import DictConfig

from data.datasets.composition import MattingFolder
from data.trimap import ramp_alpha, trivial_alpha, unknown_mask
from engine.checkpoint.file import load_weights, read_checkpoint
from engine.config.config import apply_overrides, build_section, load_config
from engine.config.overrides import write_override
from evaluation.metrics import PROTOCOLS, average, measure
from evaluation.output.report import format_table, image_sheet, sheet_row
from inference.network import TorchNetwork
from inference.predictor import Predictor
from modeling.backbone import ViT

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "demo.py"
TARGETS = {"trivial": {"SAD": 0.6, "MSE": 0.8}, "ramp": {"SAD": 1.0}, "grey picture": {"SAD": 0.9}}
"""Largest allowed quotient of the trained network's error and each row's."""
PROTOCOL = PROTOCOLS["dim"]

Matte = Callable[[NDArray, NDArray], NDArray]


def run(*command: str) -> None:
    """Show a command that a user could type, and run it from the repository's root; its output goes on ours."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def write_tiny_checkpoint(cfg: DictConfig, path: Path, seed: int) -> None:
    """Write random weights of the config's backbone size as an official DINOv3 file would hold them.

    Three input channels, no convolution necks, a stored mask beside each qkv bias, a mask token.
    """
    torch.manual_seed(seed)
    backbone = cfg.model.backbone
    sizes = {name: backbone[name] for name in ("embed_dim", "depth", "num_heads", "layer_scale_init")}
    vit = ViT(in_chans=3, global_block_indexes=range(backbone.depth), conv_residual_block_indexes=(), **sizes)
    weights = vit.state_dict()
    weights |= {name: mask for name, mask in vit.named_buffers() if name.endswith("bias_mask")}
    weights["mask_token"] = torch.zeros(1, backbone.embed_dim)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, path)


def build_matte(cfg: DictConfig, weights: Path, may_lack: Sequence[str] = ()) -> Matte:
    """Build the config's network with the weights of a file; what the file may lack stays random."""
    model = build_section(cfg.model, "model")
    load_weights(model, read_checkpoint(weights)["model"], str(weights), may_lack)
    return Predictor(TorchNetwork(model)).predict


def compare(methods: Mapping[str, Matte], test_set: MattingFolder, sheet: Path) -> dict[str, dict[str, float]]:
    """Measure every method on a test set and draw the last one's result for one image of each kind.

    Returns: method -> metric -> average over the images.
    """
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    pictures: dict[str, dict[str, NDArray]] = {}
    for index in range(len(test_set)):
        sample = test_set[index]
        image, trimap, alpha = (
            sample[name].numpy().transpose(1, 2, 0).squeeze() for name in ("image", "trimap", "alpha")
        )
        for name, matte in methods.items():
            pred_alpha = matte(image, trimap)
            rows[name].append(measure(pred_alpha, alpha, unknown_mask(trimap), PROTOCOL))
        pictures.setdefault(sample["name"].split("_")[0], sheet_row(image, trimap, pred_alpha, alpha))
    image_sheet(pictures, sheet, cell_px=192)
    return {name: average(measured) for name, measured in rows.items()}


def draw_loss_curve(metrics: Path, picture: Path) -> None:
    """Plot the losses of a run."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines = [line for line in lines if "total_loss" in line]
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name in [key for key in lines[-1] if "loss" in key]:
        axes.plot([line["iteration"] for line in lines], [line[name] for line in lines], label=name)
    axes.set(xlabel="iteration", ylabel="loss", yscale="log", title="Training of configs/demo.py")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)


def missed_targets(results: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Say which targets the trained network missed."""
    return [
        f"{metric} / {row} is {results['trained'][metric] / results[row][metric]:.3f}, expected at most {most}"
        for row, targets in TARGETS.items()
        for metric, most in targets.items()
        if results["trained"][metric] > most * results[row][metric]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and run the demo.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data, the first weights and the run")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    output = options.output.resolve()
    overrides = [write_override("train.output_dir", str(output)), f"train.seed={options.seed}"]
    cfg = load_config(CONFIG)
    apply_overrides(cfg, overrides)

    (output / "metrics.json").unlink(missing_ok=True)  # the writer would append to an earlier demo's
    run("tools/dataset/make_demo_data.py", "--output", str(output / "data"), "--seed", str(options.seed), "--overwrite")
    write_tiny_checkpoint(cfg, output / "dinov3_tiny.pth", options.seed)
    initial = Path(cfg.train.init_checkpoint)
    run("preprocess.py", "--checkpoint", str(output / "dinov3_tiny.pth"), "--output", str(initial), "--keep-prefix")
    run("main.py", "--config-file", str(CONFIG.relative_to(ROOT)), *overrides)

    torch.manual_seed(options.seed)
    trained = build_matte(cfg, output / "model_final.pth")
    methods: dict[str, Matte] = {
        "trivial": lambda image, trimap: trivial_alpha(trimap),
        "ramp": lambda image, trimap: ramp_alpha(trimap),
        "untrained": build_matte(cfg, initial, cfg.train.init_checkpoint_may_lack),
        "grey picture": lambda image, trimap: trained(np.full_like(image, 0.5), trimap),
        "trained": trained,
    }
    test_set = build_section(cfg.dataloader.test.dataset, "dataloader.test.dataset")
    results = compare(methods, test_set, output / "sheet.png")
    draw_loss_curve(output / "metrics.json", output / "loss_curve.png")
    rows = [
        {"method": name} | values | {"SAD / trivial": values["SAD"] / results["trivial"]["SAD"]}
        for name, values in results.items()
    ]
    table = f"{PROTOCOL.description}\n\n{format_table(rows, markdown=True)}\n"
    (output / "results.md").write_text(table, encoding="utf-8")
    print(f"\n{len(test_set)} held-out composites, {PROTOCOL.description}\n{format_table(rows)}")
    print(f"{time.monotonic() - start:.0f} s; look at {output}/sheet.png and loss_curve.png")
    missed = missed_targets(results)
    for line in missed:
        print(f"demo.py: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
