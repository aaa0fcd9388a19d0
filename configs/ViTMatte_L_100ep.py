r"""ViT-L/16, 100 epochs of Composition-1k.

Purpose: the large model. Each quarter of its 24 blocks ends with a global block and a convolution neck. The learning
         rate decays by 0.8 per block. Drop path is that of ViTDet's L (arXiv:2203.16527): none is published for
         matting.
Command: python preprocess.py --checkpoint dinov3_vitl16_pretrain.pth --keep-prefix \
             --output checkpoints/dinov3_vitl16_4ch_prefix.pth
         python main.py --config-file configs/ViTMatte_L_100ep.py --num-gpus 2
Cost:    134700 iterations of 32 crops of 512 px; time to be measured.
Result:  to be measured.
"""

from .common.dataloader import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_L_100ep"
train.init_checkpoint = "checkpoints/dinov3_vitl16_4ch_prefix.pth"
train.epochs = 100
model.backbone.embed_dim = 1024
model.backbone.depth = 24
model.backbone.num_heads = 16
model.backbone.global_block_indexes = [5, 11, 17, 23]
model.backbone.drop_path_rate = 0.4
optimizer.params.lr_decay_rate = 0.8
