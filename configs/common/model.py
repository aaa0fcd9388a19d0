"""DINOv3-ViTMatte-S: a ViT-S/16 with windowed and global blocks and the detail-capture decoder."""

from detectron2.config import LazyCall as L

from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import ViT

model = L(ViTMatte)(
    backbone=L(ViT)(
        patch_size=16,
        in_chans=4,
        embed_dim=384,
        depth=12,
        num_heads=6,
        mlp_ratio=4.0,
        ffn_layer="mlp",
        ffn_align=8,
        qkv_bias=True,
        layer_scale_init=1e-5,
        norm_eps=1e-5,
        # as in ViTMatte-S and B
        drop_path_rate=0.0,
        num_storage_tokens=4,
        keep_prefix_tokens=True,
        window_size=14,
        global_block_indexes=[2, 5, 8, 11],
        conv_residual_block_indexes="${.global_block_indexes}",
        rope_base=100.0,
        rope_shift=None,
        rope_jitter=None,
        rope_rescale=None,
        # True: coordinates restart in each window; docs/ablation.md
        rope_per_window=False,
        use_activation_checkpointing=False,
    ),
    decoder=L(DetailCapture)(
        in_chans="${..backbone.embed_dim}",
        image_chans="${..backbone.in_chans}",
        convstream_chans=[48, 96, 192],
        fusion_chans=[256, 128, 64, 32],
        use_activation_checkpointing=False,
    ),
    criterion=L(MattingCriterion)(
        weights=dict(loss_unknown_l1=1.0, loss_known_l1=1.0, loss_laplacian=1.0, loss_gradient=1.0),
        # "image": each image has equal weight. "batch": each pixel of a region, as in the published ViTMatte
        area="image",
        # True: losses see the prediction with its known pixels pasted, as inference gives it; docs/ablation.md
        pastes_known=False,
    ),
    # ImageNet's, as the DINOv3 weights of web images expect. Satellite weights use others.
    pixel_mean=[0.485, 0.456, 0.406],
    pixel_std=[0.229, 0.224, 0.225],
    size_divisibility=32,
    # Padding of sides that are no multiples: "edge"; "zero" or "zero_hustvl" for converted ViTMatte weights
    padding="edge",
    # Frozen: the first blocks, and patch embedding with tokens
    num_frozen_blocks=0,
    freeze_patch_embed=False,
    # Least and largest size of the copy that the backbone sees, drawn for each batch; docs/train.md
    backbone_scale_range=[1.0, 1.0],
)
