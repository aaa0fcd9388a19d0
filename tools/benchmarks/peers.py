"""Other people's implementations."""

from typing import Any


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
