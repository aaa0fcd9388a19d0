"""Run all jobs in a few minutes on a CPU: data, conversion, training, evaluation, images. `make demo` runs it.

    python tools/runs/demo.py --seed 0 --output output/demo [train.samples_per_epoch=4000 ...]

It generates a small matting set, converts a tiny checkpoint in the DINOv3 layout (random weights, no download) and
trains `configs/demo.py`. On held-out composites it compares the trained network with the trivial alpha, with the
trimap's ramp, with the untrained network, and with the trained network on a grey image. It writes metrics.json,
loss_curve.png, results.md and sheet.png to the output folder. Exit status 1: the network missed a target.
"""

import _root  # noqa: F401

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
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
from modeling.criterion import LOSS_NAMES

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "demo.py"
TARGETS = {"trivial": {"SAD": 0.6, "MSE": 0.8}, "ramp": {"SAD": 1.0}, "grey image": {"SAD": 0.9}}
"""Largest allowed error of the trained network, as a multiple of each row's error."""
PROTOCOL = PROTOCOLS["dim"]

Matte = Callable[[NDArray, NDArray], NDArray]


def run(*command: str) -> None:
    """Print a command that a user could type, and run it from the repository's root."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def write_tiny_checkpoint(cfg: DictConfig, path: Path, seed: int) -> None:
    """Write random weights in the layout of an official DINOv3 file, in the size of the config's backbone.

    It has three input channels, no convolution necks, a mask for each qkv bias, and a mask token.
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
    """Build the config's network with the weights of a file; parameters that it may lack stay random."""
    model = build_section(cfg.model, "model")
    load_weights(model, read_checkpoint(weights)["model"], str(weights), may_lack)
    return Predictor(TorchNetwork(model)).predict


def compare(methods: Mapping[str, Matte], test_set: MattingFolder, sheet: Path) -> dict[str, dict[str, float]]:
    """Measure every method on a test set, and draw the last method's result for one image of each kind.

    Returns: method -> metric -> average over the images.
    """
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    images: dict[str, dict[str, NDArray]] = {}
    for index in range(len(test_set)):
        sample = test_set[index]
        image, trimap, alpha = (
            sample[name].numpy().transpose(1, 2, 0).squeeze() for name in ("image", "trimap", "alpha")
        )
        for name, matte in methods.items():
            pred_alpha = matte(image, trimap)
            rows[name].append(measure(pred_alpha, alpha, unknown_mask(trimap), PROTOCOL))
        images.setdefault(sample["name"].split("_")[0], sheet_row(image, trimap, pred_alpha, alpha))
    image_sheet(images, sheet, cell_px=192)
    return {name: average(measured) for name, measured in rows.items()}


def missed_targets(results: Mapping[str, Mapping[str, float]]) -> list[str]:
    """List the targets that the trained network missed."""
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
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config, as main.py takes them")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    output = options.output.resolve()
    overrides = [write_override("train.output_dir", str(output)), f"train.seed={options.seed}", *options.overrides]
    cfg = load_config(CONFIG)
    apply_overrides(cfg, overrides)

    (output / "metrics.json").unlink(missing_ok=True)  # the writer would append to an earlier demo's
    run("tools/dataset/make_demo_data.py", "--output", str(output / "data"), "--seed", str(options.seed), "--overwrite")
    write_tiny_checkpoint(cfg, output / "dinov3_tiny.pth", options.seed)
    initial = Path(cfg.train.init_checkpoint)
    run("preprocess.py", "--checkpoint", str(output / "dinov3_tiny.pth"), "--output", str(initial), "--keep-prefix")
    run("main.py", "--config-file", str(CONFIG.relative_to(ROOT)), *overrides)
    curve = ["--metrics", "total_loss", *LOSS_NAMES, "--smooth", "1", "--output", str(output / "loss_curve.png")]
    run("tools/runs/plot_metrics.py", str(output), *curve, "--overwrite")

    torch.manual_seed(options.seed)
    trained = build_matte(cfg, output / "model_final.pth")
    methods: dict[str, Matte] = {
        "trivial": lambda image, trimap: trivial_alpha(trimap),
        "ramp": lambda image, trimap: ramp_alpha(trimap),
        "untrained": build_matte(cfg, initial, cfg.train.init_checkpoint_may_lack),
        "grey image": lambda image, trimap: trained(np.full_like(image, 0.5), trimap),
        "trained": trained,
    }
    test_set = build_section(cfg.dataloader.test.dataset, "dataloader.test.dataset")
    results = compare(methods, test_set, output / "sheet.png")
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
