"""Sizes of the published DINOv3 (arXiv:2508.10104) and DINOv2 (arXiv:2304.07193) networks."""

from typing import Any

DINOV3_SIZES: dict[str, dict[str, Any]] = {
    "vits16": dict(embed_dim=384, depth=12, num_heads=6),
    "vits16plus": dict(embed_dim=384, depth=12, num_heads=6, ffn_layer="swiglu", mlp_ratio=6.0),
    "vitb16": dict(embed_dim=768, depth=12, num_heads=12),
    "vitl16": dict(embed_dim=1024, depth=24, num_heads=16),
    "vitl16plus": dict(embed_dim=1024, depth=24, num_heads=16, ffn_layer="swiglu", mlp_ratio=6.0),
    "vith16plus": dict(embed_dim=1280, depth=32, num_heads=20, ffn_layer="swiglu", mlp_ratio=6.0),
    "vit7b16": dict(
        embed_dim=4096, depth=40, num_heads=32, ffn_layer="swiglu", mlp_ratio=3.0, ffn_align=64, qkv_bias=False
    ),
}
"""Size name, as in the official file names -> arguments of `ViT` that differ from its defaults."""

DINOV2_SIZES: dict[str, dict[str, Any]] = {
    "vits14": dict(embed_dim=384, depth=12, num_heads=6),
    "vitb14": dict(embed_dim=768, depth=12, num_heads=12),
    "vitl14": dict(embed_dim=1024, depth=24, num_heads=16),
    "vitg14": dict(embed_dim=1536, depth=40, num_heads=24, ffn_layer="swiglu"),
}
"""Size name, as in the official file names -> arguments of `DINOv2` that differ from its defaults."""
