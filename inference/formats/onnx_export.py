"""Write a network as one ONNX file: the plain untiled forward pass, for any batch, height and width.

The attention modules here give the same output as those of the network, by a fixed number of operations. A loop or
branch that depends on the image's size would be frozen at the size of the example.
"""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.trimap import FLOAT_TOLERANCE, FOREGROUND, UNKNOWN
from inference.formats.onnx_network import CPU, OUTPUT, open_session
from modeling import ViTMatte
from modeling.backbone.attention import Attention
from modeling.backbone.block import Block
from modeling.backbone.rope_position_encoding import rotate
from modeling.backbone.vitdet import RelativeAttention, RelativeBlock
from modeling.backbone.windows import partition, unpartition
from modeling.vitmatte import paste_known
from runtime.errors import UserError
from runtime.optional_packages import import_extra

OPSET = 18
"""The lowest version that torch's exporter writes; onnxruntime reads it since 1.14."""

MAX_BYTES = 2**31
"""An ONNX file is a protobuf message, which must be smaller."""

TOLERANCE = 1e-4
"""Largest difference of alpha from torch. Sums in another order give about 1e-6, a wrong operation 1e-2 and more."""

EXAMPLE_SIZE = (340, 530)
"""Height and width that the network is traced with: a grid of 22 x 34 patches of 16 px. No positions are stored for it,
so their interpolation is traced. The tokens are few enough that no module works in chunks."""

CHECKED_SIZE = (250, 97)
"""Height and width at which the file is compared with torch; ragged in every window and in the padding."""


DOC = """Image matting: the alpha of each pixel, from an RGB image and a trimap, for any batch, height and width.

The trimap is decoded in the graph: values within 1/255 of 0 are background, those within 1/255 of 1 are foreground, all
others are unknown. Known pixels of alpha are 0 and 1. Divide an image and a trimap of 8 bits by 255 first.
"""

RGB_DOC = "float32, RGB in [0, 1], not normalised: normalisation is part of the graph"
TRIMAP_DOC = "float32: 0 background, 0.5 (or 128/255) unknown, 1 foreground"
ALPHA_DOC = "(B, 1, H, W) float32 in [0, 1]: 0 background, 1 foreground; exactly that on the trimap's known pixels"

SIGNATURES = {
    "image_trimap": {"image": f"(B, 3, H, W) {RGB_DOC}", "trimap": f"(B, 1, H, W) {TRIMAP_DOC}", OUTPUT: ALPHA_DOC},
    "pixel_values": {
        "pixel_values": f"(B, 4, H, W). Channels 0 to 2: {RGB_DOC}. Channel 3: trimap, {TRIMAP_DOC}",
        "alphas": ALPHA_DOC,
    },
}
"""Name of a signature -> inputs, and the output last -> what they hold, for the doc strings of the file.

"pixel_values" is the interface of ViTMatte in transformers, which other programs read; `OnnxNetwork` does not.
"""


class OnnxExportError(UserError):
    """A network that cannot be written as an ONNX file; the message says why."""


def write_onnx(
    model: ViTMatte,
    path: Path,
    source: str,
    licence: str,
    signature: str = "image_trimap",
    size_px: int | None = None,
) -> float:
    """Write a network as an ONNX file, after comparing onnxruntime's alpha with torch's.

    The file contains `DOC` and the texts of `SIGNATURES`, which describe inputs and output, and the metadata `source`
    and `licence`.

    Args:
        model: on the CPU, in evaluation mode; it is not changed.
        path: must be absent; parents are made.
        source: where the weights come from, one line for people.
        licence: text of the licence note.
        signature: a name of `SIGNATURES`.
        size_px: height and width that alone the file takes; None for any.

    Returns: the largest difference of alpha from torch's, at most `TOLERANCE`.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        OnnxExportError: the file exists, would be too large, or gives another alpha.
        OSError: it cannot be written.
    """
    onnx, *_ = (import_extra(name, "ONNX export") for name in ("onnx", "onnxscript", "onnxruntime"))
    if path.exists():
        raise OnnxExportError(f"{path} exists: name a new file, nothing is overwritten")
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    if num_bytes >= MAX_BYTES:
        raise OnnxExportError(
            f"the weights are {num_bytes / 1e9:.1f} GB, an ONNX file holds less than {MAX_BYTES / 1e9:.1f}: export a "
            "model folder instead"
        )
    proto = _graph(model, signature, size_px)
    onnx.helper.set_model_props(proto, {"source": source, "licence": licence})
    onnx.checker.check_model(proto, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        unproven = Path(folder, path.name)
        onnx.save(proto, unproven)
        difference = _difference(model, unproven, (size_px, size_px) if size_px else CHECKED_SIZE)
        if not difference <= TOLERANCE:
            raise OnnxExportError(
                f"{path} is not written: onnxruntime's alpha differs from torch's by {difference:.1e}"
            )
        unproven.rename(path)
    return difference


def _graph(model: ViTMatte, signature: str, size_px: int | None) -> Any:
    """Trace a network to an ONNX model without source and licence."""
    docs = SIGNATURES[signature]
    *inputs, output = docs
    module: nn.Module = _Exportable(model)
    example: tuple[Tensor, ...] = _noise(2, (size_px, size_px) if size_px else EXAMPLE_SIZE)
    if len(inputs) == 1:
        module, example = _Joined(module).eval(), (torch.cat(example, dim=1),)
    sizes = {0: "batch"} if size_px else {0: "batch", 2: "height", 3: "width"}
    # Named once: the forward pass asserts that the trimap's are the same.
    shapes = sizes, dict.fromkeys(sizes, torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(
        module,
        example,
        dynamo=True,
        dynamic_shapes=shapes[: len(inputs)],
        input_names=inputs,
        output_names=[output],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces, with the paths of this machine
    proto.doc_string = DOC
    for value in (*proto.graph.input, *proto.graph.output):
        value.doc_string = docs[value.name]
    return proto


def _difference(model: ViTMatte, path: Path, size: tuple[int, int]) -> float:
    """Compare a file with its network, at a size that it was not traced with, if it takes others."""
    image, trimap = _noise(1, size)
    with torch.inference_mode():
        expected = model({"image": image, "trimap": trimap})["pred_alpha"]
    session = open_session(import_extra("onnxruntime", "ONNX export"), path, [CPU])
    names = [value.name for value in session.get_inputs()]
    inputs = [image, trimap] if len(names) == 2 else [torch.cat((image, trimap), dim=1)]
    (alpha,) = session.run(None, {name: values.numpy() for name, values in zip(names, inputs, strict=True)})
    return float((torch.from_numpy(alpha) - expected).abs().max())


def _noise(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Draw random images, and trimaps of which two thirds are unknown."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 3, *size, generator=generator)
    return image, torch.randint(3, (count, 1, *size), generator=generator).clamp(max=1) / 2


class _Exportable(nn.Module):
    """Run a `ViTMatte` in evaluation mode on image and trimap, with its attention modules replaced."""

    def __init__(self, model: ViTMatte) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for block in list(self.model.backbone.modules()):
            if isinstance(block, Block):
                block.add_module("attn", _Attention(block.attn))
            elif isinstance(block, RelativeBlock):
                block.add_module("attn", _RelativeAttention(block.attn, block.window_size))
                block.window_size = 0  # the new attention cuts the windows
        self.eval()

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        assert image.shape[-2:] == trimap.shape[-2:]
        height, width = image.shape[-2:]
        trimap = _decoded(trimap)
        network_input = self.model.network_input(image, trimap)
        alpha = self.model.decoder(self.model.features(network_input), network_input)[..., :height, :width]
        return paste_known(alpha, trimap)


class _Joined(nn.Module):
    """Run an `_Exportable` on image and trimap in one tensor (B, 4, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.network(pixel_values[:, :3], pixel_values[:, 3:])


def _decoded(trimap: Tensor) -> Tensor:
    """Decode a trimap of any shape to 0, 0.5 and 1: values not within `FLOAT_TOLERANCE` of 0 or 1 are unknown.

    A graph cannot refuse values. With this rule alpha stays in [0, 1] for all values, including NaN.
    """
    is_known = torch.minimum(trimap.abs(), (trimap - FOREGROUND).abs()) <= FLOAT_TOLERANCE
    return torch.where(is_known, trimap.round(), UNKNOWN)


class _Attention(nn.Module):
    """Compute `Attention` with ragged windows padded by masked keys.

    Global attention runs one head after the other, so only the logits of one head are in memory.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.num_heads, self.window_size = attention.num_heads, attention.window_size

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None, grid: tuple[int, int], queries: None) -> Tensor:
        """Apply the attention: (B, N, D) -> (B, N, D)."""
        B, N, _ = x.shape
        P = N - grid[0] * grid[1]
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).unbind(2)  # each (B, N, K, d)
        if rope is not None:
            q, k = (torch.cat((t[:, :P], rotate(t[:, P:], *rope)), dim=1) for t in (q, k))
        if self.window_size:
            out = self._attend_windows(q, k, v, P, grid)
            if P:
                of_prefix = _attend(*(t.transpose(1, 2) for t in (q[:, :P], k, v)))  # (B, K, P, d)
                out = torch.cat((of_prefix.transpose(1, 2).flatten(2), out), dim=1)
        else:
            heads = zip(*(t.unbind(2) for t in (q, k, v)), strict=True)
            out = torch.cat([_attend(*head) for head in heads], dim=2)
        return self.proj(out)

    def _attend_windows(self, q: Tensor, k: Tensor, v: Tensor, P: int, grid: tuple[int, int]) -> Tensor:
        """Attend within windows: (B, P + h * w, K, d) queries, keys and values -> (B, h * w, D), no prefix queries."""
        B, _, K, d = q.shape
        side = self.window_size

        def cut(x: Tensor) -> Tensor:
            """Cut (B, P + h * w, K, d) into (B, windows, K, tokens, d)."""
            windows = _cut(x[:, P:].reshape(B, *grid, K * d), side)
            return windows.reshape(B, -1, side * side, K, d).transpose(2, 3)

        q_windows, k_windows, v_windows = (cut(x) for x in (q, k, v))
        if P:
            k_windows, v_windows = (
                torch.cat((x[:, None, :P].transpose(2, 3).expand(-1, windows.shape[1], -1, -1, -1), windows), dim=3)
                for x, windows in ((k, k_windows), (v, v_windows))
            )
        is_key = F.pad(_cut(q.new_ones(1, *grid, 1), side)[..., 0], (P, 0), value=1.0)  # (windows, P + tokens)
        out = _attend(q_windows, k_windows, v_windows, is_key.log()[:, None, None])
        return _join(out.transpose(2, 3).flatten(3).flatten(0, 1), side, grid).flatten(1, 2)


class _RelativeAttention(nn.Module):
    """Compute `RelativeAttention`, global with one head after the other, or within windows."""

    def __init__(self, attention: RelativeAttention, window_size: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = attention.qkv, attention.proj, attention.num_heads
        self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        """Apply the attention: (B, h, w, D) -> (B, h * w, D)."""
        side = self.window_size
        if not side:
            return self._attend_grid(x, heads_at_once=1)
        windows = self._attend_grid(_cut(x, side).unflatten(1, (side, side)), self.num_heads)
        return _join(windows, side, (x.shape[1], x.shape[2])).flatten(1, 2)

    def _attend_grid(self, x: Tensor, heads_at_once: int) -> Tensor:
        """Attend with every token to all: (B, h, w, D) -> (B, h * w, D)."""
        B, h, w, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (B, K, N, d)
        rows, columns = _relative_positions(self.rel_pos_h, h), _relative_positions(self.rel_pos_w, w)
        out = []
        for q_part, k_part, v_part in zip(*(t.split(heads_at_once, dim=1) for t in (q, k, v)), strict=True):
            q_grid = q_part.unflatten(2, (h, w))  # (B, heads, h, w, d)
            bias_h = q_grid @ rows.mT  # (B, heads, h, w, h)
            bias_w = (q_grid.transpose(2, 3) @ columns.mT).transpose(2, 3)  # (B, heads, h, w, w)
            bias = (bias_h.unsqueeze(-1) + bias_w.unsqueeze(-2)).flatten(4).flatten(2, 3)  # (B, heads, N, N)
            out.append(_attend(q_part, k_part, v_part, bias))
        return self.proj(torch.cat(out, dim=1).transpose(1, 2).flatten(2))


def _relative_positions(stored: Tensor, size: int) -> Tensor:
    """Interpolate (2 n - 1, d) stored vectors to (size, size, d) for query and key, even if that changes nothing."""
    stored = F.interpolate(stored.T[None], size=2 * size - 1, mode="linear")[0].T
    index = torch.arange(size)
    return stored[index[:, None] - index[None, :] + size - 1]


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend with (..., Nq, d) queries to (..., Nk, d) keys and values, with a bias added to the logits."""
    logits = q * q.shape[-1] ** -0.5 @ k.mT
    return (logits if bias is None else logits + bias).softmax(dim=-1) @ v


def _cut(x: Tensor, side: int) -> Tensor:
    """Cut (B, h, w, C) into (B * windows, side * side, C), a ragged grid padded with zeros."""
    h, w = x.shape[1:3]
    return partition(F.pad(x, (0, 0, 0, _filled(w, side) - w, 0, _filled(h, side) - h)), side, side)


def _join(windows: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """Undo `_cut`."""
    h, w = grid
    return unpartition(windows, side, side, _filled(h, side), _filled(w, side))[:, :h, :w]


def _filled(length: int, side: int) -> int:
    """Return the next multiple as a product: the exporter would carry remainders through every layer."""
    return (length + side - 1) // side * side
