r"""ViT-B/16, 100 epochs of Composition-1k on crops of 1024 px.

Purpose: the base model at the resolution of the test images; see ViTMatte_S_100ep_1024.py. Backbone and decoder use
         activation checkpointing. Memory: docs/model_zoo.md.
Command: python preprocess.py --checkpoint dinov3_vitb16_pretrain.pth --keep-prefix \
             --output checkpoints/dinov3_vitb16_4ch_prefix.pth
         python main.py --config-file configs/ViTMatte_B_100ep_1024.py --num-gpus 2
Cost:    134700 iterations of 32 crops of 1024 px; time to be measured.
Result:  to be measured.
"""

from .common.dataloader import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_B_100ep_1024"
train.init_checkpoint = "checkpoints/dinov3_vitb16_4ch_prefix.pth"
train.epochs = 100
dataloader.train.dataset.crop_px = 1024
dataloader.train.dataset.trimap.reference_px = 512
model.backbone.embed_dim = 768
model.backbone.num_heads = 12
model.backbone.use_activation_checkpointing = True
model.decoder.use_activation_checkpointing = True
optimizer.params.lr_decay_rate = 0.7
