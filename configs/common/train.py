"""Length and bookkeeping of a training. Epochs and samples are the settings; iterations follow from them.

The published recipe, 16 samples on each of 2 GPUs: 43_100 / 32 rounded up is 1347 iterations per epoch, 10 epochs are
13470, and a checkpoint comes every 2 epochs or 2694.
"""

from detectron2.config import LazyCall as L

import engine.config.epochs  # noqa: F401  registers the resolvers used here
from evaluation.output.sample_sheet import SampleSheet

train = dict(
    output_dir="output/unnamed",
    # What preprocess.py makes of a published DINOv3 checkpoint, a training's checkpoint, or a model folder; "" starts
    # from random weights.
    init_checkpoint="",
    # Parts of the names of tensors that no pretrained backbone has.
    init_checkpoint_may_lack=["decoder.", ".residual."],
    # Whether the network is that of init_checkpoint, as described beside it; null builds the config's own.
    model_of_checkpoint=None,
    device="${default_device:}",
    # "float32", "tf32", "bf16" or "fp16"
    precision="float32",
    # Batches of each process in one step: as one batch of so many times the size, in the memory of one; docs/train.md
    # says what model.criterion.area=batch makes of it.
    accumulation=1,
    # Norm of all gradients above which they are scaled down to it; null leaves them.
    clip_norm=None,
    # Moving average of weights and buffers, per step; 0.9998 for instance. null keeps none.
    ema_decay=None,
    # BatchNorm's statistics: "own" (of each process's batch), "sync" (of the batches of all), "frozen".
    batch_norm="own",
    # Name of the list of modules by which a network larger than one GPU is sharded over the processes (FSDP2),
    # "backbone.blocks"; "": each process holds all of it. docs/sharding.md
    sharded_blocks="",
    # Whether torch.compile makes code of the network.
    compile=False,
    seed=0,
    # Seconds that processes wait for one another before they take one for lost.
    timeout_s=1800,
    # Seconds without a batch after which a loader's worker counts as standing still; less than timeout_s.
    loader_timeout_s=600,
    epochs=10,
    # 431 foregrounds x 100 backgrounds, the Composition-1k convention
    samples_per_epoch=43_100,
    # 1000 iterations of 32
    warmup_samples=32_000,
    # So long decoder and necks learn alone; then the pretrained weights follow with a warm-up of their own.
    decoder_warmup_samples=0,
    epochs_per_checkpoint=2,
    # Processes. 2 is the recipe's; main.py sets the number that it starts.
    world_size=2,
    iterations_per_epoch="${iterations_per_epoch:${.samples_per_epoch},${dataloader.train.batch_size},${.world_size},"
    "${.accumulation}}",
    max_iter="${epochs_to_iterations:${.epochs},${.iterations_per_epoch}}",
    checkpointer=dict(
        period="${epochs_to_iterations:${..epochs_per_checkpoint},${..iterations_per_epoch}}",
        max_to_keep=5,
    ),
    eval_period="${.checkpointer.period}",
    # Which evaluation's weights stay as model_best.pth; null, or a null metric, keeps none.
    best_checkpoint=dict(metric="matting/SAD", mode="min"),
    # Iterations between two lines of the log, metrics.json and TensorBoard.
    log_period=20,
    # Samples of a batch with what the network makes of them, every so many iterations and at the end; 0 draws none.
    pictures=dict(period="${..eval_period}", num_samples=4, draw=L(SampleSheet)(cell_px=256)),
    # Project of Weights & Biases to which metrics go as well; null sends nothing anywhere.
    wandb=None,
)
