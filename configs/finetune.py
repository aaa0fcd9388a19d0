"""Fine-tune a trained network on your own photographs. The network comes with the checkpoint.

Purpose: learn from a few images with alphas without losing what the network knows: small learning rates, frozen
         BatchNorm statistics, every tensor of the checkpoint. docs/finetune.md has an example, and the
         optimizer.params.lr_decay_rate for a backbone larger than S.
Command: python main.py --config-file configs/finetune.py train.init_checkpoint=models/first dataloader.folder=DATA
         (a model folder, or a checkpoint of a run; DATA has image/ and alpha/, and test/, or dataloader.test=null)
Cost:    1000 iterations of 4 crops of 512 px; time to be measured.
Result:  depends on the data; docs/finetune.md has a small example.
"""

from .common.dataloader_photographs import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/finetune"
train.model_of_checkpoint = True
train.init_checkpoint_may_lack = []
train.world_size = 1
train.batch_norm = "frozen"
train.samples_per_epoch = 400
train.epochs = 10
train.warmup_samples = 400
optimizer.lr = 5e-5
optimizer.params.decoder_lr_factor = 1.0
dataloader.train.batch_size = 4
