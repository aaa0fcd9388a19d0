r"""ViT-H+/16, 100 epochs of Composition-1k, sharded over the GPUs.

Purpose: the huge model, with 0.87 billion parameters. Each quarter of its 32 blocks ends with a global block and a
         neck. Drop path is that of ViTDet's H (arXiv:2203.16527).
Command: python preprocess.py --checkpoint dinov3_vith16plus_pretrain.pth --keep-prefix \
             --output checkpoints/dinov3_vith16plus_4ch_prefix.pth
         python main.py --config-file configs/ViTMatte_Hplus_100ep.py --num-gpus 4
Cost:    134700 iterations of 32 crops of 512 px; memory by formula in docs/sharding.md, time to be measured.
Result:  to be measured.
"""

from .common.dataloader import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_Hplus_100ep"
train.init_checkpoint = "checkpoints/dinov3_vith16plus_4ch_prefix.pth"
train.epochs = 100
train.precision = "bf16"
train.sharded_blocks = "backbone.blocks"
train.world_size = 4
dataloader.train.batch_size = 8
model.backbone.embed_dim = 1280
model.backbone.depth = 32
model.backbone.num_heads = 20
model.backbone.ffn_layer = "swiglu"
model.backbone.mlp_ratio = 6.0
model.backbone.global_block_indexes = [7, 15, 23, 31]
model.backbone.drop_path_rate = 0.5
model.backbone.use_activation_checkpointing = True
optimizer.params.lr_decay_rate = 0.8
