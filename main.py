"""Train or evaluate one config.

    python main.py --config-file CONFIG --num-gpus 2 train.output_dir=output/first
    python main.py --config-file CONFIG --num-gpus 2 --resume train.output_dir=output/first
    python main.py --config-file CONFIG --eval-only train.init_checkpoint=output/first/model_final.pth

Exit status:
    0    done
    1    a data set or checkpoint is missing or does not match; with a traceback: a bug
    2    wrong command line or config
    3    the data or the loader failed
    4    losses were not finite
    5    another process was lost
    6    the output folder cannot be written, or another run uses it
    7    out of memory in a step; the message names the settings to lower
    75   stopped by SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU: start it again
    130  stopped by Ctrl-C; a second Ctrl-C exits at once
A stopped run first writes a checkpoint of all completed steps. --resume continues from it. docs/resume.md has details.
"""

from runtime.openmp import wait_policy  # first: it sets what torch reads when it is loaded

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig

from engine.checkpoint.output_folders import check_resume, hold_outputs
from engine.checkpoint.pretrained import adopt_model
from engine.config.config import TRAINING_SECTIONS, apply_overrides, check_number_or_null, check_whole, load_config
from engine.config.epochs import describe_change, samples_per_iteration
from engine.distributed.launch import launch
from engine.distributed.padded_eval import MEMORY_ADVICE
from engine.distributed.spawn import no_children_left
from engine.interrupts import StopSignals
from engine.logging.setup import set_up_logs
from engine.out_of_memory import STEP_ADVICE
from engine.run import evaluate_only, train
from engine.stops import as_stop, exit_on_error
from engine.trainer import set_float32_products
from runtime.command_line import argument_parser
from runtime.dist_env import describe_tasks, find_dist_env
from runtime.errors import ConfigError, UserError

logger = logging.getLogger("engine.main")

LOGGED = ("fvcore", "detectron2", "engine", "evaluation", "runtime")
"""Packages whose messages go to the console and to log.txt."""

LEAST = {"train.seed": 0, "train.log_period": 1, "train.timeout_s": 1, "train.loader_timeout_s": 1}
"""Setting -> smallest whole number that it may have."""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and the config, and call `run` in each process."""
    args = argument_parser(epilog=__doc__).parse_args(argv)
    try:
        with exit_on_error():
            cfg, schedule_change = read_config(args)
            launch(run, args, cfg.train.device, (cfg, args, schedule_change), cfg.train.timeout_s)
    except KeyboardInterrupt:
        advice = "" if args.eval_only else "; --resume goes on from the last checkpoint, if there is one"
        print(f"main.py: interrupted{advice}", file=sys.stderr)
        sys.exit(130)


def read_config(args: argparse.Namespace) -> tuple[DictConfig, str]:
    """Load the config that a command line names, and apply its overrides.

    Returns: the config, and a line on what another number of samples per iteration changed in its schedule, or "".
    """
    if not args.config_file:
        raise ConfigError("no config: name a .py config, or a run's config.yaml, by --config-file FILE")
    cfg = load_config(args.config_file, TRAINING_SECTIONS, args.trust_module)
    recipe_samples = samples_per_iteration(cfg)
    if any(override.startswith("train.world_size=") for override in args.opts):
        raise ConfigError("train.world_size follows from --num-gpus and --num-machines, or from torchrun: set these")
    world_size = f"train.world_size={find_dist_env(args).world_size}"
    apply_overrides(cfg, [*args.opts, world_size], lambda cfg: adopt_model(cfg, args.trust_module))
    if args.resume:
        check_resume(cfg, Path(args.config_file))
    for key, least in LEAST.items():
        check_whole(cfg, key, least)
    for key in ("train.clip_norm", "train.ema_decay"):
        check_number_or_null(cfg, key)
    return cfg, describe_change(cfg, recipe_samples)


def run(cfg: DictConfig, args: argparse.Namespace, schedule_change: str) -> None:
    """Train or evaluate in this process. What surrounds a run stands here: its folders, signals, child processes, logs.

    detectron2's `default_setup` is not used: it always overwrites a saved config.
    """
    with hold_outputs(cfg, args.eval_only), StopSignals(), no_children_left():
        rank = comm.get_rank()
        set_up_logs(cfg.train.output_dir, rank, LOGGED)
        if comm.get_world_size() == 1 and (tasks := describe_tasks()):
            logger.warning(tasks)
        # Nothing needs detectron2's compiled part, which is not installed.
        environment = [line for line in collect_env_info().splitlines() if not line.startswith("detectron2._C ")]
        logger.info("Environment:\n%s\nCommand line: %s", "\n".join(environment), args)
        logger.info("Processes: %d, on %s", comm.get_world_size(), cfg.train.device)
        logger.info("OpenMP's threads wait by %s", wait_policy())
        if schedule_change and not args.eval_only:
            logger.info(schedule_change)
        seed_all_rng(cfg.train.seed + rank)
        set_float32_products(cfg.train.precision)
        try:
            if args.eval_only:
                evaluate_only(cfg, args.resume)
            else:
                train(cfg, args.resume)
        except BaseException as error:
            if stop := as_stop(error, MEMORY_ADVICE if args.eval_only else STEP_ADVICE):
                logger.error("Stopped: %s", stop)
                raise stop from error
            if isinstance(error, Exception) and not isinstance(error, FileNotFoundError | PermissionError | UserError):
                logger.exception("Ended by an unexpected error:")  # a bug: its traceback goes to log.txt, too
            raise


if __name__ == "__main__":
    main()
