"""Build the networks that are compared: written into a folder once, loaded by each process."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.trimap import UNKNOWN, decode_trimap, encode_trimap
from inference.formats.model_folder import build, write_model_folder
from inference.formats.published_vitmatte import convert_published
from inference.network import DTYPES
from inference.predictor import Predictor
from tools.benchmarks.scene import TRIMAPS, draw_image
from tools.benchmarks.squashed import import_matting, load_squashed, write_squashed

WEIGHTS = {"transformers": "ViTMatte-S", "ours-vitmatte": "ViTMatte-S", "ours": "DINOv3-ViTMatte-S"}
"""Side -> network of its weights. Sides with the same weights must give the same alpha."""

REDUCED_PX = 1024
REDUCED, SQUASHED = f"ours-vitmatte-{REDUCED_PX}", "rembg"
INEXACT = {REDUCED: "ViTMatte-S", SQUASHED: "ViTMatte-S"}
"""Side -> network, as `WEIGHTS`: our backbone on a copy, and rembg's way, which resizes. Their alphas are others."""

DINOV3 = {"type": "ViTMatte", "backbone": {"type": "ViT"}, "decoder": {"type": "DetailCapture", "in_chans": 384}}
"""Description of DINOv3-ViTMatte-S for `inference.formats.model_folder.build`."""

CALIBRATION_PX, LOGIT_DEVIATION = 256, 2.0

NOTE = "Random weights, for measuring."

Prepare = Callable[[NDArray, NDArray], Callable[[], NDArray]]
"""Image (H, W, 3) uint8 and trimap (H, W) uint8 of {0, 128, 255} -> a function that predicts alpha, (H, W) float32."""


def transformers_vitmatte() -> Any:
    """Build transformers' VitMatte-S with random weights; it takes `pixel_values` (B, 4, H, W)."""
    from transformers import VitDetConfig, VitMatteConfig, VitMatteForImageMatting

    backbone = VitDetConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_channels=4,
        image_size=512,
        pretrain_image_size=224,
        patch_size=16,
        window_size=14,
        window_block_indices=[0, 1, 3, 4, 6, 7, 9, 10],
        residual_block_indices=[2, 5, 8, 11],
        use_relative_position_embeddings=True,
        out_features=["stage12"],  # type: ignore[call-arg]  # an argument of every backbone's config
    )
    config = VitMatteConfig(
        backbone_config=backbone,
        hidden_size=384,
        convstream_hidden_sizes=[48, 96, 192],
        fusion_hidden_sizes=[256, 128, 64, 32],
    )
    return VitMatteForImageMatting(config)


def write_networks(folder: Path, sides: Iterable[str]) -> None:
    """Write the networks for `load`. ViTMatte-S is built by transformers and converted like published weights."""
    sides = set(sides)
    if SQUASHED in sides:
        import_matting()  # if it is missing, no network is built first
    if sides - {"ours"}:
        theirs = transformers_vitmatte()
        randomise(theirs, theirs)
        theirs.save_pretrained(folder / "transformers")
        published = convert_published(theirs.state_dict())
        write_model_folder(folder / "ours-vitmatte", published.description, published.tensors, NOTE, NOTE)
    if SQUASHED in sides:
        write_squashed(folder / "ours-vitmatte", folder / SQUASHED)
    if "ours" in sides:
        ours: Any = build("model", DINOV3)
        randomise(ours, lambda pixels: ours.decoder(ours.backbone(pixels), pixels))
        write_model_folder(folder / "ours", DINOV3, ours.state_dict(), NOTE, NOTE)


@torch.no_grad()
def randomise(network: Any, forward: Callable[[Tensor], Any]) -> None:
    """Give a network random weights and running statistics, and alphas of all sizes.

    Args:
        network: of either implementation; it is put into evaluation mode.
        forward: the network, called with (B, 4, H, W) colours and trimap.
    """
    generator = torch.Generator().manual_seed(0)
    statistics = ((name, buffer) for name, buffer in network.named_buffers() if ".running_" in name)
    for name, tensor in [*network.named_parameters(), *statistics]:
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor.dim() > 1:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith(("gamma", "weight")):  # of layer scales and norms
            tensor.copy_(1 + 0.2 * noise)
        else:
            tensor.copy_(0.2 * noise)
    network.eval()
    # An alpha that is nearly the same everywhere would hide errors.
    last = network.decoder.matting_head.matting_convs[-1]
    found: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, inputs, output: found.append(output))
    size = CALIBRATION_PX, CALIBRATION_PX
    pixels = torch.cat([transformers_input(draw_image(*size), encode_trimap(draw(*size))) for draw in TRIMAPS.values()])
    forward(pixels)
    hook.remove()
    logits = found[0][pixels[:, 3:] == UNKNOWN]
    scale = LOGIT_DEVIATION / logits.std()
    last.weight.mul_(scale)
    last.bias.sub_(logits.mean()).mul_(scale)


def load(
    side: str, folder: Path, device: str, precision: str, is_compiled: bool = False, max_memory_gb: float | None = None
) -> Prepare:
    """Load the network of a side.

    Args:
        side: key of `WEIGHTS` or `INEXACT`.
        folder: of `write_networks`.
        device: "cpu", "cuda" ...
        precision: key of `DTYPES`.
        is_compiled: compile with `torch.compile`.
        max_memory_gb: memory limit of our sides, see `inference.memory.plan_tile`.
    """
    if side == "transformers":
        return load_transformers(folder / side, device, precision, is_compiled)
    if side == SQUASHED:
        return load_squashed(folder / side)
    predictor = Predictor.load(
        folder / ("ours-vitmatte" if side == REDUCED else side),
        device=device,
        precision=precision,
        max_memory_gb=max_memory_gb,
        is_compiled=is_compiled,
        backbone_px=REDUCED_PX if side == REDUCED else "full",
    )
    return lambda image, trimap: lambda: predictor.predict(image, trimap)


def load_transformers(folder: Path, device: str, precision: str, is_compiled: bool) -> Prepare:
    """Load transformers' network. Preparing an image normalises and pads it, and copies it to the device."""
    from transformers import VitMatteForImageMatting, logging

    logging.disable_progress_bar()
    network: Any = VitMatteForImageMatting.from_pretrained(folder)
    network.to(device).eval()
    forward = torch.compile(network, dynamic=False) if is_compiled else network
    is_autocast = precision != "float32"

    def prepare(image: NDArray, trimap: NDArray) -> Callable[[], NDArray]:
        height, width = trimap.shape
        pixel_values = transformers_input(image, trimap).to(device)

        @torch.inference_mode()
        def predict() -> NDArray:
            with torch.autocast(torch.device(device).type, DTYPES[precision], enabled=is_autocast):
                alphas = forward(pixel_values=pixel_values).alphas
            return alphas[0, 0, :height, :width].float().cpu().numpy()

        return predict

    return prepare


def transformers_input(image: NDArray, trimap: NDArray) -> Tensor:
    """Normalise by mean and deviation 0.5 and pad with zeros to multiples of 32 px, as transformers' processor does.

    Unknown is 0.5 as in ours, not its 128 / 255: otherwise alphas could not be compared.

    Args:
        image: (H, W, 3) uint8.
        trimap: (H, W), see `data.trimap.decode_trimap`.

    Returns: (1, 4, H', W').
    """
    height, width = trimap.shape
    padding = (0, -width % 32, 0, -height % 32)
    colours = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    known = torch.from_numpy(decode_trimap(trimap))[None, None]
    return F.pad(torch.cat(((colours - 0.5) / 0.5, known), dim=1), padding)
