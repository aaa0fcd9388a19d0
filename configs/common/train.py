"""Length, precision, checkpoints and logs of a run. Epochs and samples are settings; iterations follow from them.

The published recipe, 16 samples on each of 2 GPUs: 43_100 / 32 rounded up is 1347 iterations per epoch, 10 epochs are
13470, and a checkpoint comes every 2 epochs or 2694.
"""

from detectron2.config import LazyCall as L

import engine.config.epochs  # noqa: F401  registers the resolvers used here
from evaluation.output.sample_sheet import SampleSheet

train = dict(
    output_dir="output/unnamed",
    # An initial checkpoint of preprocess.py, a checkpoint of a run, or a model folder. "": random weights.
    init_checkpoint="",
    # Parts of names of tensors that are missing in every pretrained backbone.
    init_checkpoint_may_lack=["decoder.", ".residual."],
    # True builds the network that is described beside init_checkpoint, null the network of the config.
    model_of_checkpoint=None,
    device="${default_device:}",
    # "float32", "tf32", "bf16" or "fp16"
    precision="float32",
    # Batches of each process in one step: the gradients of one large batch in the memory of one. See docs/train.md for
    # model.criterion.area=batch.
    accumulation=1,
    # Gradients of a larger norm are scaled down to it. null: no clipping.
    clip_norm=None,
    # EMA of weights and buffers, per step, for example 0.9998. null: none.
    ema_decay=None,
    # BatchNorm statistics: "own" (each process's batch), "sync" (the batches of all processes), "frozen".
    batch_norm="own",
    # List of modules for sharding a network over the processes (FSDP2): "backbone.blocks". "": no sharding.
    # docs/sharding.md
    sharded_blocks="",
    # True compiles the network with torch.compile.
    compile=False,
    seed=0,
    # Seconds that processes wait for each other before one counts as lost.
    timeout_s=1800,
    # Seconds without a batch after which a loader worker counts as stuck; less than timeout_s.
    loader_timeout_s=600,
    epochs=10,
    # 431 foregrounds x 100 backgrounds, the Composition-1k convention
    samples_per_epoch=43_100,
    # 1000 iterations of 32
    warmup_samples=32_000,
    # For this many samples only decoder and necks are trained. Then the pretrained weights start, with a warm-up.
    decoder_warmup_samples=0,
    epochs_per_checkpoint=2,
    # Number of processes in the recipe. main.py sets the number that it starts.
    world_size=2,
    iterations_per_epoch="${iterations_per_epoch:${.samples_per_epoch},${dataloader.train.batch_size},${.world_size},"
    "${.accumulation}}",
    max_iter="${epochs_to_iterations:${.epochs},${.iterations_per_epoch}}",
    checkpointer=dict(
        period="${epochs_to_iterations:${..epochs_per_checkpoint},${..iterations_per_epoch}}",
        max_to_keep=5,
    ),
    eval_period="${.checkpointer.period}",
    # The metric that selects model_best.pth. null, or a null metric: none.
    best_checkpoint=dict(metric="matting/SAD", mode="min"),
    # Iterations between two lines of the log, metrics.json and TensorBoard.
    log_period=20,
    # Sample images with predictions, every `period` iterations and at the end. 0: none.
    pictures=dict(period="${..eval_period}", num_samples=4, draw=L(SampleSheet)(cell_px=256)),
    # Project of Weights & Biases that gets the metrics too. null: nothing is sent.
    wandb=None,
)
