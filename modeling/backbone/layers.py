"""Small layers of the vision transformer, named as in the DINOv2, DINOv3 and ViTMatte checkpoints."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import ConfigError, UserError, check_minimum

PIECE_TOKENS = 2048
"""Tokens that `chunked` takes at once. The hidden layer of a ViT-S MLP then needs 12 MiB."""


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each: (B, C, H, W) -> (B, H / patch, W / patch, D).

    In reduced precision the projection is a matrix product over the pixels of a patch, the same sum as the convolution.
    With AMX, oneDNN's convolution in bfloat16 gives wrong values for kernels of 16 px and 4 channels (torch 2.14.1).
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        check_minimum(1, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim)
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        _, C, H, W = x.shape
        if self.proj.in_channels != C:
            raise UserError(f"the backbone takes {self.proj.in_channels} channels (RGB and trimap), got {C}")
        if H % self.patch_size or W % self.patch_size:
            raise UserError(f"image sides must be multiples of the patch size {self.patch_size}, got {H} x {W}; pad")
        device = x.device.type  # of "meta", PyTorch cannot say whether autocast is enabled
        is_autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if self.proj.weight.dtype in (torch.float32, torch.float64) and not is_autocast:
            return self.proj(x).permute(0, 2, 3, 1)
        side = self.patch_size
        patches = x.unflatten(3, (W // side, side)).unflatten(2, (H // side, side))  # (B, C, h, side, w, side)
        pixels = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, h, w, C * side * side)
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)


class LayerScale(nn.Module):
    """Multiply each channel of a residual branch by a learnt factor (arXiv:2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class QKVLinear(nn.Linear):
    """Project to query, key and value, with a bias that never reaches the keys, as DINOv3 was trained.

    A key bias shifts all logits of a query equally, so the softmax ignores it. The mask keeps it at zero in training.
    """

    bias_mask: Tensor | None

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__(dim, 3 * dim, bias=bias)
        mask = torch.ones(3 * dim)
        mask[dim : 2 * dim] = 0.0
        self.register_buffer("bias_mask", mask if bias else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, None if self.bias_mask is None else self.bias * self.bias_mask)


class Mlp(nn.Module):
    """Apply two linear layers around an exact GELU."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """Apply the gated feed-forward network w3(silu(w1 x) * w2 x) (arXiv:2002.05202)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim)
        self.w2 = nn.Linear(dim, hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


def build_ffn(kind: str, dim: int, mlp_ratio: float, align: int = 1) -> nn.Module:
    """Build the feed-forward network of a block.

    Args:
        kind: "mlp", hidden width mlp_ratio x dim; or "swiglu", two thirds of that, rounded up to a multiple of `align`.
        mlp_ratio: above 0, at most 100.

    Raises:
        ConfigError: another kind, or a ratio or alignment out of range.
    """
    check_minimum(1, ffn_align=align)
    if not 0 < mlp_ratio <= 100:
        raise ConfigError(f"mlp_ratio must be above 0 and at most 100, got {mlp_ratio}")
    if kind == "mlp":
        return Mlp(dim, round(mlp_ratio * dim))
    if kind == "swiglu":
        hidden_dim = int(mlp_ratio * dim * 2 / 3)
        return SwiGLU(dim, -(-hidden_dim // align) * align)
    raise ConfigError(f'ffn_layer must be "mlp" or "swiglu", got {kind!r}')


class ChannelLayerNorm(nn.LayerNorm):
    """Apply LayerNorm over the channels of a (B, C, H, W) map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvResidual(nn.Module):
    """Add a 1x1, 3x3, 1x1 bottleneck of half the width to its input: ViTMatte's convolution neck (arXiv:2305.15272).

    The last norm starts at zero, so a fresh neck returns its input unchanged.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv1 = nn.Conv2d(dim, half, 1, bias=False)
        self.norm1 = ChannelLayerNorm(half, eps=1e-6)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm2 = ChannelLayerNorm(half, eps=1e-6)
        self.conv3 = nn.Conv2d(half, dim, 1, bias=False)
        self.norm3 = ChannelLayerNorm(dim, eps=1e-6)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.norm3.weight)
        nn.init.zeros_(self.norm3.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the neck: (B, D, h, w) -> (B, D, h, w)."""
        out = F.gelu(self.norm1(self.conv1(x)))
        out = F.gelu(self.norm2(self.conv2(out)))
        return x + self.norm3(self.conv3(out))


def check_heads(dim: int, num_heads: int) -> None:
    """Raise a ConfigError if the heads of an attention do not divide its width."""
    check_minimum(1, num_heads=num_heads)
    if dim % num_heads:
        raise ConfigError(f"width {dim} is not divisible by {num_heads} heads")


def checked_indexes(name: str, indexes: Iterable[int], depth: int) -> frozenset[int]:
    """Return block indexes as a set; raise a ConfigError if one lies outside the depth."""
    found = frozenset(int(index) for index in indexes)
    outside = sorted(index for index in found if not 0 <= index < depth)
    if outside:
        raise ConfigError(f"{name}: {outside} lie outside the {depth} blocks (0 to {depth - 1})")
    return found


def build_blocks(
    kind: type[nn.Module],
    depth: int,
    drop_path_rate: float,
    window_size: int,
    global_block_indexes: Iterable[int],
    conv_residual_block_indexes: Iterable[int],
    **settings: Any,
) -> nn.ModuleList:
    """Build the blocks of a vision transformer.

    Args:
        kind: class of the blocks.
        depth: number of blocks.
        drop_path_rate: probability of skipping the last block; it grows linearly from 0 (arXiv:1603.09382).
        window_size: side in patches of the windows of the blocks that are not global.
        global_block_indexes: blocks with global attention.
        conv_residual_block_indexes: blocks that end with a convolution neck.
        settings: arguments that all blocks share.

    Raises:
        ConfigError: for numbers out of range and block indexes outside the depth.
    """
    check_minimum(1, depth=depth)
    if not 0 <= drop_path_rate < 1:
        raise ConfigError(f"drop_path_rate must be at least 0 and below 1, got {drop_path_rate}")
    global_blocks = checked_indexes("global_block_indexes", global_block_indexes, depth)
    conv_residual_blocks = checked_indexes("conv_residual_block_indexes", conv_residual_block_indexes, depth)
    if window_size < 1 and len(global_blocks) < depth:
        raise ConfigError(f"window_size must be at least 1 patch, got {window_size}")
    return nn.ModuleList(
        kind(
            drop_path=drop_path_rate * index / max(depth - 1, 1),
            window_size=0 if index in global_blocks else window_size,
            has_conv_residual=index in conv_residual_blocks,
            **settings,
        )
        for index in range(depth)
    )


def init_weights(model: nn.Module, tokens: Iterable[nn.Parameter | None]) -> None:
    """Draw the first weights of linear layers and tokens, with a standard deviation of 0.02; biases start at 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for token in tokens:
        if token is not None:
            nn.init.normal_(token, std=0.02)


def chunked(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply a function that treats each token alone; without gradients, to `PIECE_TOKENS` tokens at a time.

    Intermediate values then stay in caches and need almost no memory.

    Args:
        function: of tensors (B, n, ...), gives one (B, n, ...).
        inputs: tensors (B, N, ...).
    """
    num_tokens = inputs[0].shape[1]
    if torch.is_grad_enabled() or num_tokens <= PIECE_TOKENS:
        return function(*inputs)
    pieces = (slice(start, start + PIECE_TOKENS) for start in range(0, num_tokens, PIECE_TOKENS))
    return join((function(*(x[:, piece] for x in inputs)) for piece in pieces), 1, num_tokens)


def join(pieces: Iterable[Tensor], dim: int, size: int) -> Tensor:
    """Concatenate pieces that are computed one after the other.

    Without gradients each piece is copied to its place at once. If all were kept until the last, the memory between
    them, which is used only for a while, could not be released.

    Args:
        pieces: at least one.
        dim: dimension to concatenate along.
        size: total size along it.
    """
    if torch.is_grad_enabled():
        return torch.cat(list(pieces), dim)
    out: Tensor | None = None
    start = 0
    for piece in pieces:
        if out is None:
            out = piece.new_empty(*piece.shape[:dim], size, *piece.shape[dim + 1 :])
        out.narrow(dim, start, piece.shape[dim]).copy_(piece)
        start += piece.shape[dim]
    assert out is not None and start == size
    return out


def read_indexes(query_mask: Tensor, has_conv_residual: bool) -> Tensor:
    """List the patches that the last block has to compute, so that the patches of a mask are right.

    Args:
        query_mask: (h, w) bool.
        has_conv_residual: whether a `ConvResidual` follows, whose 3x3 convolution also reads each patch's neighbours.

    Returns: (n,) indexes in row order.
    """
    if has_conv_residual:
        query_mask = F.max_pool2d(query_mask[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
    return query_mask.flatten().nonzero()[:, 0]
