r"""ViT-7B/16, 100 epochs of Composition-1k, sharded over the GPUs.

Purpose: the largest DINOv3, with 6.9 billion parameters. Each quarter of its 40 blocks ends with a global block and
         a neck.
Command: python preprocess.py --checkpoint dinov3_vit7b16_pretrain.pth --keep-prefix \
             --output checkpoints/dinov3_vit7b16_4ch_prefix.pth
         python main.py --config-file configs/ViTMatte_7B_100ep.py --num-gpus 8
Cost:    134700 iterations of 32 crops of 512 px; memory by formula in docs/sharding.md, time to be measured.
Result:  to be measured.
"""

from .common.dataloader import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_7B_100ep"
train.init_checkpoint = "checkpoints/dinov3_vit7b16_4ch_prefix.pth"
train.epochs = 100
train.precision = "bf16"
train.sharded_blocks = "backbone.blocks"
train.world_size = 8
dataloader.train.batch_size = 4
model.backbone.embed_dim = 4096
model.backbone.depth = 40
model.backbone.num_heads = 32
model.backbone.ffn_layer = "swiglu"
model.backbone.mlp_ratio = 3.0
model.backbone.ffn_align = 64
model.backbone.qkv_bias = False
model.backbone.global_block_indexes = [9, 19, 29, 39]
model.backbone.use_activation_checkpointing = True
optimizer.params.lr_decay_rate = 0.8
