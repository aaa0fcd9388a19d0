"""A training run from its config, and an evaluation alone."""

import logging
import os
import shutil
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from detectron2.engine.hooks import HookBase, IterationTimer
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from engine.checkpoint.file import EMA, Checkpointer, CheckpointError
from engine.checkpoint.pretrained import load_initial
from engine.checkpoint.sharded import ShardedCheckpointer
from engine.config.build_data import SECTIONS, DataSource, build_data
from engine.config.config import build_section, describe_differences, save_config
from engine.distributed.batch_norm import set_batch_norm
from engine.distributed.fsdp import is_sharded, listed_blocks, shard
from engine.distributed.launch import distribute
from engine.distributed.padded_eval import evaluate
from engine.ema import Ema
from engine.hooks.checkpoint import PeriodicCheckpointer
from engine.hooks.evaluation import EvaluateAndKeepBest, evaluate_all, metric_names
from engine.hooks.loader_speed import LoaderBottleneckWarning
from engine.hooks.metrics import DrawSamples, WriteMetrics
from engine.interrupts import OutputError, output_file, uninterrupted
from engine.logging.run_record import is_restarted, record_run
from engine.logging.writers import build_writers
from engine.lr_scheduler import LRScheduler
from engine.out_of_memory import OutOfMemory
from engine.stops import exit_with, first_stop
from engine.trainer import NonFiniteError, Trainer
from runtime.atomic_write import remove_unfinished
from runtime.errors import ConfigError

logger = logging.getLogger(__name__)

COMPILERS = {"cpu": ("CXX", "g++"), "cuda": ("CC", "gcc")}
"""Device -> the variable that names the compiler behind torch.compile, and its default."""

NAME_WEIGHTS = "name trained weights by train.init_checkpoint=FILE, or take the run's last checkpoint by --resume"


def train(cfg: DictConfig, resume: bool) -> None:
    """Train a config from its initial checkpoint.

    With `resume`, or if torchrun or Slurm has started the run again, it continues from the last checkpoint of its
    folder. Of a finished run it only makes the last evaluation, if that was interrupted.

    Raises:
        SystemExit: the run was stopped between two steps; see `save_on_stop`.
    """
    settings, folder = cfg.train, Path(cfg.train.output_dir)
    if not resume and is_restarted(folder):
        logger.info("This run was started again by torchrun or Slurm: it resumes")
        resume = True
    if comm.is_main_process():
        remove_unfinished(folder)
        if resume:
            log_differences(cfg, folder / "config.yaml")

    data = build_data(cfg.dataloader)
    model, ema = build_networks(cfg)
    cfg.optimizer.params.model = model
    optimizer = build_section(cfg.optimizer, "optimizer")
    cfg.optimizer.params.model = None  # a config that is saved holds no network
    trainer = Trainer(
        distribute(model),
        data.train_loader,
        optimizer,
        precision=settings.precision,
        seed=settings.seed,
        accumulation=settings.accumulation,
        clip_norm=settings.clip_norm,
        ema=ema,
        loader_timeout_s=settings.loader_timeout_s,
    )
    # A strong reference would form a cycle with the trainer's hooks: the loader's workers would outlive the trainer.
    tracked = {"trainer": weakref.proxy(trainer), **({} if ema is None else {EMA: ema})}
    kind = ShardedCheckpointer if settings.sharded_blocks else Checkpointer
    checkpointer = kind(model, settings.output_dir, **tracked)
    checkpoint_hook = PeriodicCheckpointer(checkpointer, **settings.checkpointer)
    networks = {"": model, **({} if ema is None else {EMA: ema.module})}
    metrics = WriteMetrics(settings.log_period)
    trainer.register_hooks(build_hooks(cfg, data, networks, checkpoint_hook, metrics))

    load_start(cfg, checkpointer, resume)
    start = min(trainer.next_iteration, settings.max_iter)
    if comm.is_main_process():
        metrics.writers = build_writers(cfg, start)
    if start == settings.max_iter:
        num_samples = settings.max_iter * trainer.samples_per_iteration
        logger.info("%s is finished: %d of %d samples are done", folder, trainer.samples_seen, num_samples)
    else:
        if trainer.samples_seen == 0:
            checkpointer.backup()
        if comm.is_main_process():
            save_config(cfg, folder / "config.yaml")
        record_run(cfg, start)

    with uninterrupted(), save_on_stop(trainer, checkpoint_hook, folder):
        trainer.train(start, settings.max_iter)


def log_differences(cfg: DictConfig, saved: Path) -> None:
    """Log the settings in which a resume differs from the run so far."""
    if not saved.is_file():
        return
    try:
        differences = describe_differences(saved, cfg)
    except ConfigError as error:
        differences = [f"not known, {error}"]
    if differences:
        logger.warning("The config is not that of %s, before -> now:\n  %s", saved, "\n  ".join(differences))


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
    if settings.compile:
        check_compiler(settings.device)
        model.compile()
    return model, ema


def check_compiler(device: str) -> None:
    """Raise a ConfigError if torch.compile would not find its compiler in the first step."""
    variable, name = COMPILERS.get(device, COMPILERS["cpu"])
    command = os.environ.get(variable) or name
    if shutil.which(command.split()[0]) is None:
        raise ConfigError(
            f"train.compile=true needs a compiler on train.device={device}, and there is no {command!r}: install "
            f"{name}, name one by {variable}, or leave train.compile=false"
        )


def build_hooks(
    cfg: DictConfig,
    data: DataSource,
    networks: Mapping[str, nn.Module],
    checkpoint_hook: PeriodicCheckpointer,
    metrics: WriteMetrics,
) -> list[HookBase]:
    """List the hooks of a run in their order. The main process has some that only it needs.

    Args:
        cfg: complete; `cfg.optimizer.params.model` is None.
        data: its test set is evaluated, if there is one.
        networks: name -> network to evaluate and to draw.
        checkpoint_hook: it writes before the evaluation of the same step.
        metrics: the last hook. It also writes what an evaluation measured.
    """
    settings, is_main = cfg.train, comm.is_main_process()
    hooks: list[HookBase] = [IterationTimer()]
    if is_main:
        hooks.append(LoaderBottleneckWarning())
    hooks += [LRScheduler(scheduler=build_section(cfg.lr_multiplier, "lr_multiplier")), checkpoint_hook]
    if (pictures := settings.pictures) is not None:
        draw = build_section(pictures.draw, "train.pictures.draw")
        hooks.append(DrawSamples(draw, networks, settings.output_dir, pictures.period, pictures.num_samples))
    if data.test_loader is not None:
        wrap = None if data.test_network is None else data.test_network.wrap
        hooks.append(
            EvaluateAndKeepBest(
                settings.eval_period,
                partial(evaluate_all, networks, data.test_loader, data.evaluator, wrap, settings.loader_timeout_s),
                checkpoint_hook.checkpointer,
                networks,
                **(settings.best_checkpoint or {}),
                metrics=metric_names(networks, data.evaluator),
                write=metrics.write,
            )
        )
    return [*hooks, metrics] if is_main else hooks


def load_start(cfg: DictConfig, checkpointer: Checkpointer, resume: bool) -> None:
    """Load the last checkpoint of a resume, or else the initial weights of a new run."""
    settings = cfg.train
    if resume and (last := checkpointer.find_last()):
        checkpointer.load(last)
        return
    if resume:
        logger.warning("There is no checkpoint in %s to resume from: a new run starts", settings.output_dir)
    if settings.init_checkpoint:
        load_initial(checkpointer.model, settings.init_checkpoint, settings.init_checkpoint_may_lack)
    else:
        logger.info("Starting from random weights: train.init_checkpoint is empty")


@contextmanager
def save_on_stop(trainer: Trainer, checkpoint_hook: PeriodicCheckpointer, folder: Path) -> Iterator[None]:
    """If a run is stopped in the block, write a checkpoint of its completed steps, log the reason, and exit.

    Processes that stop together also exit together. Errors that are no stop (see `first_stop`) leave the block.

    Raises:
        SystemExit: with the status of the stop.
    """
    try:
        yield
        return
    except BaseException as error:
        if (found := first_stop(error)) is None:
            raise
        stop = found
    done = trainer.next_iteration
    try:
        # The shards of a lost process are gone. A checkpoint that is not sharded is written by the main process alone.
        if trainer.is_mid_update:
            logger.error("This step has moved some weights and not others: they are not saved")
        elif stop.is_shared or (comm.is_main_process() and not is_sharded(trainer.model)):
            checkpoint_hook.save()
        if isinstance(stop, NonFiniteError):
            batch_path = folder / f"not_finite_{done - 1:07d}_process_{comm.get_rank()}.pth"
            with output_file(batch_path) as unfinished:
                torch.save({"batches": stop.batches}, unfinished)
            logger.error("The batch of process %d is in %s", comm.get_rank(), batch_path)
    except (OutputError, OSError) as error:
        logger.error("Not all is saved: %s", error)
    saved = checkpoint_hook.saved_iterations
    advice = f"--resume goes on from iteration {saved}" if saved else "There is no checkpoint to resume from"
    logger.error("Stopped: %s\n%s", stop, advice if done else "No step was done yet")
    if stop.is_shared:
        comm.synchronize()  # the first process to end takes the others with it
    if isinstance(stop, OutOfMemory) and not comm.is_main_process():
        exit_with(str(stop), stop.status, is_own=True)  # the main process only knows that it lost this one
    sys.exit(stop.status)


def evaluate_only(cfg: DictConfig, resume: bool) -> None:
    """Evaluate `train.init_checkpoint`, or with `resume` the last checkpoint of the config's folder.

    Raises:
        LoaderError, OutOfMemory: see `engine.distributed.padded_eval.evaluate`.
    """
    if cfg.dataloader.test is None:
        raise ConfigError("an evaluation needs a test set, and dataloader.test is null")
    data = build_data(cfg.dataloader, SECTIONS[1:])
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
    if data.test_network is not None:
        model = data.test_network.wrap(model)
    if (views := cfg.dataloader.test_views) is not None:
        model = build_section(views, "dataloader.test_views").wrap(model)
    evaluate(model, data.test_loader, data.evaluator, timeout_s=cfg.train.loader_timeout_s)


def find_last_weights(model: nn.Module, folder: str) -> str:
    """Find the last checkpoint's file, or "". The final checkpoint of a sharded network has one beside its folder."""
    checkpointer = Checkpointer(model, folder)
    last = checkpointer.get_checkpoint_file()
    plain = Path(f"{last}{checkpointer.suffix}")
    return str(plain) if last and plain.is_file() else checkpointer.find_last()
