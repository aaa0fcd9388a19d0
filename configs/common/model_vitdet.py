"""ViTMatte-S as published: ViTDet's transformer with relative positions; the same decoder and losses."""

from detectron2.config import LazyCall as L

from modeling.backbone import ViTDet

from .model import model

model.backbone = L(ViTDet)(
    patch_size=16,
    in_chans=4,
    embed_dim=384,
    depth=12,
    num_heads=6,
    mlp_ratio=4.0,
    norm_eps=1e-6,
    drop_path_rate=0.0,
    image_size=512,
    pretrain_image_size=224,
    window_size=14,
    global_block_indexes=[2, 5, 8, 11],
    conv_residual_block_indexes="${.global_block_indexes}",
    use_activation_checkpointing=False,
)
