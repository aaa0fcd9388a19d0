r"""ViT-S/16, 100 epochs of Composition-1k on crops of 1024 px.

Purpose: train at the resolution of the test images, as the best released methods do. Trimap radii go up to 28 px
         instead of 14. Blocks use activation checkpointing. If memory is short, lower
         dataloader.train.batch_size or add GPUs. The number of epochs stays.
Command: python preprocess.py --checkpoint dinov3_vits16_pretrain.pth --keep-prefix \
             --output checkpoints/dinov3_vits16_4ch_prefix.pth
         python main.py --config-file configs/ViTMatte_S_100ep_1024.py --num-gpus 2
Cost:    134700 iterations of 32 crops of 1024 px; time to be measured, memory in docs/model_zoo.md.
Result:  to be measured.
"""

from .common.dataloader import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_S_100ep_1024"
train.init_checkpoint = "checkpoints/dinov3_vits16_4ch_prefix.pth"
train.epochs = 100
dataloader.train.dataset.crop_px = 1024
dataloader.train.dataset.trimap.reference_px = 512
model.backbone.use_activation_checkpointing = True
