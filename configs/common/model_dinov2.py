"""DINOv2-ViTMatte-S: the DINOv2 transformer with absolute positions; the same decoder and losses."""

from detectron2.config import LazyCall as L

from modeling.backbone import DINOv2

from .model import model

model.backbone = L(DINOv2)(
    patch_size=16,
    in_chans=4,
    embed_dim=384,
    depth=12,
    num_heads=6,
    mlp_ratio=4.0,
    ffn_layer="mlp",
    layer_scale_init=1.0,
    norm_eps=1e-6,
    drop_path_rate=0.0,
    num_register_tokens=0,
    position_grid_size=37,
    # "bicubic_antialias" for timm's files and networks with registers; preprocess.py prints it
    position_interpolation="bicubic",
    window_size=14,
    global_block_indexes=[2, 5, 8, 11],
    conv_residual_block_indexes="${.global_block_indexes}",
    use_activation_checkpointing=False,
)
