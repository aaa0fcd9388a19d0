"""A training put together from its config, and an evaluation alone."""

import json
import logging
import sys
import weakref
from functools import partial
from pathlib import Path

from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_writers, hooks
from detectron2.utils import comm
from omegaconf import DictConfig

from engine.checkpoint import Checkpointer, load_weights, read_checkpoint
from engine.config import ConfigError
from engine.hooks import EvaluateAndKeepBest, WriteMetrics, evaluate
from engine.launch import distribute
from engine.loading import LoaderError
from engine.pace import WarnOfSlowLoader
from engine.start import build_data
from engine.trainer import Trainer

logger = logging.getLogger(__name__)

LOADER_STATUS = 3


def train(cfg: DictConfig, resume: bool) -> None:
    """Train a config from its initial checkpoint, or with `resume` from the last one of its folder if there is any.

    Of a finished training only the last evaluation is made, where a stop cut it off.
    """
    settings = cfg.train
    train_loader, test_loader, evaluator = build_data(cfg.dataloader)
    model = instantiate(cfg.model).to(settings.device)
    cfg.optimizer.params.model = model
    trainer = Trainer(distribute(model), train_loader, instantiate(cfg.optimizer), settings.precision, settings.seed)
    # A proxy, since the trainer's hooks hold the checkpointer: in a cycle, its loader's workers would outlive it.
    checkpointer = Checkpointer(model, settings.output_dir, trainer=weakref.proxy(trainer))
    is_main = comm.is_main_process()
    evaluation = partial(evaluate, model, test_loader, evaluator)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            WarnOfSlowLoader() if is_main else None,
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **settings.checkpointer) if is_main else None,
            EvaluateAndKeepBest(
                settings.eval_period,
                evaluation,
                checkpointer,
                **(settings.get("best_checkpoint") or {}),  # configs saved by earlier versions lack it
                metrics=getattr(evaluator, "metric_names", None),
            )
            if test_loader is not None
            else None,
            WriteMetrics(default_writers(settings.output_dir, settings.max_iter), settings.log_period)
            if is_main
            else None,
        ]
    )
    if resume and checkpointer.has_checkpoint():
        checkpointer.load(checkpointer.get_checkpoint_file())
    elif path := settings.init_checkpoint:
        load_weights(model, read_checkpoint(path)["model"], path, settings.init_checkpoint_may_lack)
    else:
        logger.info("Starting from random weights: train.init_checkpoint is empty")
    if trainer.next_iteration >= settings.max_iter:
        logger.info("%s is finished: all %d iterations are done", settings.output_dir, settings.max_iter)
    elif is_main:
        cfg.optimizer.params.model = None
        LazyConfig.save(cfg, f"{settings.output_dir}/config.yaml")
    try:
        trainer.train(trainer.next_iteration, settings.max_iter)
    except LoaderError as error:
        stop_for_want_of_samples(trainer, checkpointer, error)


def stop_for_want_of_samples(trainer: Trainer, checkpointer: Checkpointer, error: LoaderError) -> None:
    """Write a checkpoint of the steps done and the count of faults, say why, and end all processes together."""
    done = trainer.next_iteration
    if done and comm.is_main_process():
        # A line of its own: the last step's may be written already, and the faults came after it.
        with Path(checkpointer.save_dir, "metrics.json").open("a") as file:
            file.write(json.dumps({"faulty_samples": float(trainer.faulty_samples), "iteration": done - 1}) + "\n")
    if done > trainer.start_iter:
        checkpointer.save(f"model_{done - 1:07d}", iteration=done - 1)
    advice = f"--resume goes on from iteration {done}" if done else "No step was done yet"
    logger.error("Stopped: %s\n%s", error, advice)
    comm.synchronize()  # the first process to end takes the others with it
    sys.exit(LOADER_STATUS)


def evaluate_only(cfg: DictConfig, resume: bool) -> None:
    """Evaluate `train.init_checkpoint`, or with `resume` the last checkpoint of the config's folder."""
    if cfg.dataloader.test is None:
        raise ConfigError("--eval-only needs a test set, and dataloader.test is null")
    test_loader = instantiate(cfg.dataloader.test)
    model = instantiate(cfg.model).to(cfg.train.device)
    last = Checkpointer(model, cfg.train.output_dir).get_checkpoint_file()
    path = last if resume else cfg.train.init_checkpoint
    if not path:
        raise ConfigError(
            f"nothing to evaluate: {f'no checkpoint in {cfg.train.output_dir}' if resume else 'no checkpoint named'}"
        )
    load_weights(model, read_checkpoint(path)["model"], path)
    evaluate(model, test_loader, instantiate(cfg.dataloader.evaluator))
