"""A training put together from its config, and an evaluation alone."""

import logging
import os
import shutil
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from detectron2.engine.hooks import HookBase, IterationTimer
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from omegaconf import DictConfig
from torch import nn

from engine.checkpoint.file import EMA, Checkpointer, CheckpointError
from engine.checkpoint.pretrained import load_initial
from engine.checkpoint.sharded import ShardedCheckpointer
from engine.config.build_data import SECTIONS, build_data
from engine.config.config import build_section, describe_differences, save_config
from engine.distributed.batch_norm import set_batch_norm
from engine.distributed.fsdp import is_sharded, listed_blocks, shard
from engine.distributed.launch import distribute, exit_with
from engine.distributed.spawn import no_children_left
from engine.ema import Ema
from engine.hooks.checkpoint import PeriodicCheckpointer
from engine.hooks.evaluation import MEMORY_ADVICE, EvaluateAndKeepBest, evaluate, evaluate_all, metric_names
from engine.hooks.loader_speed import LoaderBottleneckWarning
from engine.hooks.metrics import DrawSamples, WriteMetrics
from engine.interrupts import OutputError, StopSignals, TrainingStopped, first_stop, output_file
from engine.logging.run_record import is_restarted, record_run
from engine.logging.writers import build_writers
from engine.lr_scheduler import LRScheduler
from engine.out_of_memory import OutOfMemory, stop_on_out_of_memory
from engine.trainer import NonFiniteError, Trainer
from runtime.atomic_write import remove_unfinished
from runtime.errors import ConfigError

logger = logging.getLogger(__name__)

COMPILERS = {"cpu": ("CXX", "g++"), "cuda": ("CC", "gcc")}
"""Device -> the variable that names the compiler behind torch.compile, and the one taken without."""

NAME_WEIGHTS = "name trained weights by train.init_checkpoint=FILE, or take the run's last checkpoint by --resume"


def train(cfg: DictConfig, resume: bool) -> None:
    """Train a config from its initial checkpoint, or with `resume` from the last one of its folder if there is any.

    A run that torchrun or Slurm has started again resumes in any case.

    Of a finished training only the last evaluation is made, where a stop cut it off.

    Raises:
        SystemExit: where the training is stopped, with the status of its kind.
    """
    with StopSignals() as signals:
        try:
            with no_children_left(), stop_on_out_of_memory():
                _train(cfg, resume, signals)
        except TrainingStopped as stop:
            logger.error("Stopped while the training was put together: %s", stop)
            _exit(stop)


def _train(cfg: DictConfig, resume: bool, signals: StopSignals) -> None:
    """Build and run a training run."""
    settings = cfg.train
    folder = Path(settings.output_dir)
    if not resume and is_restarted(folder):
        logger.info("This run was started again by torchrun or Slurm: it resumes")
        resume = True
    if comm.is_main_process():
        remove_unfinished(folder)
        if resume:
            tell_differences(cfg, folder / "config.yaml")
    train_loader, test_loader, evaluator, test_network = build_data(cfg.dataloader)
    model, ema = build_networks(cfg)
    cfg.optimizer.params.model = model
    optimizer = build_section(cfg.optimizer, "optimizer")
    cfg.optimizer.params.model = None
    if settings.compile:
        check_compiler(settings.device)
        model.compile()
    trainer = Trainer(
        model if is_sharded(model) else distribute(model),
        *(train_loader, optimizer, settings.precision, settings.seed, settings.accumulation, settings.clip_norm, ema),
        loader_timeout_s=settings.loader_timeout_s,
    )
    # A proxy, since the trainer's hooks hold the checkpointer: in a cycle, its loader's workers would outlive it.
    tracked = {"trainer": weakref.proxy(trainer), **({"ema": ema} if ema is not None else {})}
    kind = ShardedCheckpointer if settings.sharded_blocks else Checkpointer
    checkpointer = kind(model, settings.output_dir, **tracked)
    checkpoints = PeriodicCheckpointer(checkpointer, **settings.checkpointer)
    networks = {"": model, **({EMA: ema.module} if ema is not None else {})}
    evaluation = None
    wrap = None if test_network is None else test_network.wrap
    if test_loader is not None:
        evaluation = EvaluateAndKeepBest(
            settings.eval_period,
            partial(evaluate_all, networks, test_loader, evaluator, wrap, settings.loader_timeout_s),
            checkpointer,
            networks,
            **(settings.best_checkpoint or {}),
            metrics=metric_names(networks, evaluator),
            is_recorded_later=True,
        )
    writers = build_writers(cfg) if comm.is_main_process() else []
    trainer.register_hooks(build_hooks(cfg, networks, checkpoints, evaluation, writers))
    if resume and (last := checkpointer.find_last()):
        checkpointer.load(last)
    else:
        if resume:
            logger.warning("There is no checkpoint in %s to resume from: a new run starts", folder)
        if path := settings.init_checkpoint:
            load_initial(model, path, settings.init_checkpoint_may_lack)
        else:
            logger.info("Starting from random weights: train.init_checkpoint is empty")
    for writer in writers:
        writer.begin(min(trainer.next_iteration, settings.max_iter))
    if trainer.next_iteration >= settings.max_iter:
        num_samples = settings.max_iter * trainer.samples_per_iteration
        logger.info("%s is finished: %d of %d samples are done", folder, trainer.samples_seen, num_samples)
    else:
        if trainer.samples_seen == 0:
            checkpointer.backup()
        if comm.is_main_process():
            save_config(cfg, folder / "config.yaml")
        record_run(cfg, trainer.next_iteration)
    with signals.kept_for(trainer):
        try:
            trainer.train(trainer.next_iteration, settings.max_iter)
        except TrainingStopped as stop:
            end_early(trainer, checkpoints, folder, first_stop(stop))


def build_hooks(
    cfg: DictConfig,
    networks: Mapping[str, nn.Module],
    checkpoints: PeriodicCheckpointer,
    evaluation: EvaluateAndKeepBest | None,
    writers: Sequence[EventWriter],
) -> list[HookBase]:
    """Build the hooks of a run in order, in the main process also those that only it needs.

    Args:
        cfg: whole, without the model in it.
        networks: name -> network of which pictures are drawn.
        checkpoints: written before the evaluation of the same step.
        evaluation: None for none.
        writers: of metrics; the main process's are asked.
    """
    settings, pictures = cfg.train, cfg.train.pictures
    found: list[HookBase] = [IterationTimer()]
    if comm.is_main_process():
        found.append(LoaderBottleneckWarning())
    found += [LRScheduler(build_section(cfg.lr_multiplier, "lr_multiplier")), checkpoints]
    if evaluation is not None:
        found.append(evaluation)
    if pictures is not None:
        draw = build_section(pictures.draw, "train.pictures.draw")
        found.append(DrawSamples(draw, networks, settings.output_dir, pictures.period, pictures.num_samples))
    if comm.is_main_process():
        found.append(WriteMetrics(writers, settings.log_period, evaluation))
    return found


def build_networks(cfg: DictConfig) -> tuple[nn.Module, Ema | None]:
    """Build the network of a run on its device, and its EMA if the config has one.

    With `train.sharded_blocks` and several processes both are sharded over these.
    """
    settings = cfg.train
    blocks = settings.sharded_blocks if comm.get_world_size() > 1 else ""

    def build(device: str) -> nn.Module:
        with torch.device(device):
            return set_batch_norm(build_section(cfg.model, "model"), settings.batch_norm, settings.device)

    model = build("meta") if blocks else build("cpu").to(settings.device)
    if settings.sharded_blocks:
        listed_blocks(model, settings.sharded_blocks)
    ema = None if settings.ema_decay is None else Ema(model, settings.ema_decay)
    if blocks:
        source = build("cpu") if comm.is_main_process() else None
        for network in (model, *([] if ema is None else [ema.module])):
            shard(network, blocks, settings.device, source)
    return model, ema


def check_compiler(device: str) -> None:
    """Raise a ConfigError where torch.compile would not find, in the first step, the compiler that it needs."""
    variable, name = COMPILERS.get(device, COMPILERS["cpu"])
    command = os.environ.get(variable) or name
    if shutil.which(command.split()[0]) is None:
        raise ConfigError(
            f"train.compile=true needs a compiler on train.device={device}, and there is no {command!r}: install "
            f"{name}, name one by {variable}, or leave train.compile=false"
        )


def tell_differences(cfg: DictConfig, saved: Path) -> None:
    """Log in which settings a resume differs from the training so far."""
    if not saved.is_file():
        return
    try:
        differences = describe_differences(saved, cfg)
    except ConfigError as error:
        differences = [f"not known, {error}"]
    if differences:
        logger.warning("The config is not that of %s, before -> now:\n  %s", saved, "\n  ".join(differences))


def end_early(trainer: Trainer, checkpoints: PeriodicCheckpointer, folder: Path, stop: TrainingStopped) -> None:
    """Write a checkpoint of the steps done where the weights are at hand, say why, and end this process.

    All end together where they stop together.
    """
    done = trainer.next_iteration
    try:
        # Parts of a lost process are lost; and what the main process writes alone, it tells of alone.
        if isinstance(stop, OutOfMemory) and not stop.has_whole_steps:
            logger.error("This step has moved some weights and not others: they are not saved")
        elif stop.is_shared or (comm.is_main_process() and not is_sharded(trainer.model)):
            checkpoints.save()
        if isinstance(stop, NonFiniteError):
            batch_path = folder / f"not_finite_{done - 1:07d}_process_{comm.get_rank()}.pth"
            with output_file(batch_path) as unfinished:
                torch.save({"batches": stop.batches}, unfinished)
            logger.error("The batch of process %d is in %s", comm.get_rank(), batch_path)
    except (OutputError, OSError) as error:
        logger.error("Not all is saved: %s", error)
    saved = checkpoints.saved_iterations
    advice = f"--resume goes on from iteration {saved}" if saved else "There is no checkpoint to resume from"
    logger.error("Stopped: %s\n%s", stop, advice if done else "No step was done yet")
    if stop.is_shared:
        comm.synchronize()  # the first process to end takes the others with it
    _exit(stop)


def _exit(stop: TrainingStopped) -> NoReturn:
    """End this process with the status of a stop that is logged."""
    if isinstance(stop, OutOfMemory) and not comm.is_main_process():
        exit_with(str(stop), stop.status, is_own=True)  # the main process can only tell that it lost this one
    sys.exit(stop.status)


@no_children_left()
@stop_on_out_of_memory(MEMORY_ADVICE)
def evaluate_only(cfg: DictConfig, resume: bool) -> None:
    """Evaluate `train.init_checkpoint`, or with `resume` the last checkpoint of the config's folder.

    Raises:
        LoaderError, OutOfMemory: see `engine.hooks.evaluation.evaluate`.
    """
    if cfg.dataloader.test is None:
        raise ConfigError("an evaluation needs a test set, and dataloader.test is null")
    _, test_loader, evaluator, test_network = build_data(cfg.dataloader, SECTIONS[1:])
    model = build_section(cfg.model, "model").to(cfg.train.device)
    path = find_last_weights(model, cfg.train.output_dir) if resume else cfg.train.init_checkpoint
    if not path:
        raise ConfigError(
            f"nothing to evaluate: {f'no checkpoint in {cfg.train.output_dir}' if resume else NAME_WEIGHTS}"
        )
    try:
        load_initial(model, path)
    except CheckpointError as error:
        if resume:
            raise
        raise CheckpointError(f"{error}. To evaluate, {NAME_WEIGHTS}") from error
    if test_network is not None:
        model = test_network.wrap(model)
    if (views := cfg.dataloader.test_views) is not None:
        model = build_section(views, "dataloader.test_views").wrap(model)
    evaluate(model, test_loader, evaluator, timeout_s=cfg.train.loader_timeout_s)


def find_last_weights(model: nn.Module, folder: str) -> str:
    """Find the last checkpoint's file, which the final one of a sharded network has beside its folder; "" for none."""
    checkpointer = Checkpointer(model, folder)
    last = checkpointer.get_checkpoint_file()
    plain = Path(f"{last}{checkpointer.suffix}")
    return str(plain) if last and plain.is_file() else checkpointer.find_last()
