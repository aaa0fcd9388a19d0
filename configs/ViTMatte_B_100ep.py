r"""ViT-B/16, 100 epochs of Composition-1k.

Purpose: the base model. The learning rate decays by 0.7 per block, as for ViTDet's base model.
Command: python preprocess.py --checkpoint dinov3_vitb16_pretrain.pth --keep-prefix \
             --output checkpoints/dinov3_vitb16_4ch_prefix.pth
         python main.py --config-file configs/ViTMatte_B_100ep.py --num-gpus 2
Cost:    134700 iterations of 32 crops of 512 px; time to be measured.
Result:  to be measured.
"""

from .common.dataloader import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_B_100ep"
train.init_checkpoint = "checkpoints/dinov3_vitb16_4ch_prefix.pth"
train.epochs = 100
model.backbone.embed_dim = 768
model.backbone.num_heads = 12
optimizer.params.lr_decay_rate = 0.7
