"""Train or evaluate one config.

    python main.py --config-file CONFIG --num-gpus 2 train.output_dir=output/first
    python main.py --config-file CONFIG --num-gpus 2 --resume train.output_dir=output/first
    python main.py --config-file CONFIG --eval-only train.init_checkpoint=output/first/model_final.pth

Exit status: 2 for a command line or config that cannot be used, 1 where a data set or checkpoint is missing or unfit,
3 where the data or the loader failed on the way: there is a checkpoint of all steps done, from which --resume goes on,
130 interrupted: --resume goes on from the last checkpoint, and what came after it is lost.
"""

import argparse
import json
import logging
import sys
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_argument_parser, default_writers, hooks
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from engine.checkpoint import Checkpointer, load_weights, read_checkpoint
from engine.config import TRAINING_SECTIONS, ConfigError, apply_overrides, check_whole, load_config
from engine.hooks import EvaluateAndKeepBest, WriteMetrics, evaluate
from engine.launch import distribute, launch
from engine.loading import LoaderError
from engine.pace import WarnOfSlowLoader
from engine.schedule import describe_change, samples_per_iteration
from engine.start import build_data
from engine.trainer import Trainer

logger = logging.getLogger("engine.main")

LOGGED = ("fvcore", "detectron2", "engine", "evaluation")
"""Packages whose messages go to the console and to log.txt."""

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


def run(cfg: DictConfig, args: argparse.Namespace, schedule_change: str) -> None:
    """What each process does. detectron2's `default_setup` is not used: it overwrites a saved config in any case."""
    rank = comm.get_rank()
    for name in LOGGED:
        setup_logger(cfg.train.output_dir, distributed_rank=rank, name=name)
    logger.info("Environment:\n%s\nCommand line: %s", collect_env_info(), args)
    try:
        seed_all_rng(cfg.train.seed + rank)
        if args.eval_only:
            evaluate_only(cfg, args.resume)
        else:
            if schedule_change:
                logger.info(schedule_change)
            train(cfg, args.resume)
    except (FileNotFoundError, ValueError) as error:  # what every room raises for files and settings that do not fit
        sys.exit(f"main.py: {error}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = default_argument_parser(epilog=__doc__).parse_args(argv)
    try:
        cfg = load_config(args.config_file, TRAINING_SECTIONS)
        recipe_samples = samples_per_iteration(cfg)
        for option, number in (("--num-gpus", args.num_gpus), ("--num-machines", args.num_machines)):
            if number < 1:
                raise ConfigError(f"{option} must be at least 1, got {number}; train.device=cpu trains without a GPU")
        if any(override.startswith("train.world_size=") for override in args.opts):
            raise ConfigError("train.world_size follows from --num-gpus and --num-machines: set these")
        apply_overrides(cfg, [*args.opts, f"train.world_size={args.num_gpus * args.num_machines}"])
        for key, least in (("train.seed", 0), ("train.log_period", 1)):
            check_whole(cfg, key, least)
        launch(run, args, cfg.train.device, (cfg, args, describe_change(cfg, recipe_samples)))
    except ConfigError as error:
        print(f"main.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        advice = "" if args.eval_only else "; --resume goes on from the last checkpoint, if there is one"
        print(f"main.py: interrupted{advice}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
