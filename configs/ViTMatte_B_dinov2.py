r"""ViT-B on DINOv2, 100 epochs of Composition-1k.

Purpose: the recipe of ViTMatte_B_100ep.py on weights that anyone may use (Apache-2.0).
Command: python preprocess.py --checkpoint dinov2_vitb14_pretrain.pth --output checkpoints/dinov2_vitb16_4ch.pth
         python main.py --config-file configs/ViTMatte_B_dinov2.py --num-gpus 2
Cost:    134700 iterations of 32 crops of 512 px; time to be measured.
Result:  to be measured.
"""

from .common.dataloader import dataloader
from .common.model_dinov2 import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_B_dinov2"
train.init_checkpoint = "checkpoints/dinov2_vitb16_4ch.pth"
train.epochs = 100
model.backbone.embed_dim = 768
model.backbone.num_heads = 12
optimizer.params.lr_decay_rate = 0.7
