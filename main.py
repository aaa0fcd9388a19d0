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

from engine.batches import LoaderError
from engine.checkpoint.output_folders import check_resume, hold_outputs
from engine.checkpoint.pretrained import adopt_model
from engine.config.config import TRAINING_SECTIONS, apply_overrides, check_number_or_null, check_whole, load_config
from engine.config.epochs import describe_change, samples_per_iteration
from engine.distributed.launch import STATUS_OF_WRONG_USAGE, exit_with, launch, raise_on_lost_peer
from engine.interrupts import LostProcess, OutputError
from engine.logging.setup import set_up_logs
from engine.out_of_memory import OutOfMemory
from engine.run import evaluate_only, train
from engine.trainer import set_float32_products
from runtime.command_line import argument_parser
from runtime.dist_env import describe_tasks, find_dist_env
from runtime.errors import ConfigError, UserError

logger = logging.getLogger("engine.main")

LOGGED = ("fvcore", "detectron2", "engine", "evaluation", "runtime")
"""Packages whose messages go to the console and to log.txt."""


def run(cfg: DictConfig, args: argparse.Namespace, schedule_change: str) -> None:
    """What each process does, with its output folders held against other runs."""
    try:
        with hold_outputs(cfg, args.eval_only):
            train_or_evaluate(cfg, args, schedule_change)
    except OutputError as error:
        exit_with(str(error), error.status)


def train_or_evaluate(cfg: DictConfig, args: argparse.Namespace, schedule_change: str) -> None:
    """Train or evaluate. detectron2's `default_setup` is not used: it overwrites a saved config in any case."""
    rank = comm.get_rank()
    set_up_logs(cfg.train.output_dir, rank, LOGGED)
    if comm.get_world_size() == 1 and (tasks := describe_tasks()):
        logger.warning(tasks)
    logger.info("Environment:\n%s\nCommand line: %s", describe_environment(), args)
    logger.info("Processes: %d, on %s", comm.get_world_size(), cfg.train.device)
    logger.info("OpenMP's threads wait by %s", wait_policy())
    try:
        with raise_on_lost_peer():
            seed_all_rng(cfg.train.seed + rank)
            set_float32_products(cfg.train.precision)
            if args.eval_only:
                evaluate_only(cfg, args.resume)
            else:
                if schedule_change:
                    logger.info(schedule_change)
                train(cfg, args.resume)
    except (LoaderError, OutOfMemory) as stop:  # of an evaluation alone: a run ends itself
        exit_with(str(stop), stop.status, is_own=not stop.is_shared)
    except ConfigError:
        raise  # `main` or `launch` says it, once for all processes
    except (FileNotFoundError, PermissionError, UserError) as error:
        exit_with(str(error), 1, is_own=True)
    except Exception:  # a bug: its traceback goes to log.txt, too
        logger.exception("Ended by an unexpected error:")
        raise


def describe_environment() -> str:
    """Describe machine and libraries, without detectron2's compiled part: it is not installed, and nothing needs it."""
    lines = collect_env_info().splitlines()
    return "\n".join(line for line in lines if not line.startswith("detectron2._C "))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = argument_parser(epilog=__doc__).parse_args(argv)
    try:
        if not args.config_file:
            raise ConfigError("no config: name a .py config, or a run's config.yaml, by --config-file FILE")
        cfg = load_config(args.config_file, TRAINING_SECTIONS, args.trust_module)
        recipe_samples = samples_per_iteration(cfg)
        if any(override.startswith("train.world_size=") for override in args.opts):
            raise ConfigError(
                "train.world_size follows from --num-gpus and --num-machines, or from torchrun: set these"
            )
        of_network = [override for override in args.opts if override.startswith("model.")]
        others = [override for override in args.opts if override not in of_network]
        apply_overrides(cfg, [*others, f"train.world_size={find_dist_env(args).world_size}"])
        adopt_model(cfg, args.trust_module)
        apply_overrides(cfg, of_network)
        if args.resume:
            check_resume(cfg, Path(args.config_file))
        for key, least in {
            "train.seed": 0,
            "train.log_period": 1,
            "train.timeout_s": 1,
            "train.loader_timeout_s": 1,
        }.items():
            check_whole(cfg, key, least)
        for key in ("train.clip_norm", "train.ema_decay"):
            check_number_or_null(cfg, key)
        launch(run, args, cfg.train.device, (cfg, args, describe_change(cfg, recipe_samples)), cfg.train.timeout_s)
    except ConfigError as error:
        exit_with(str(error), STATUS_OF_WRONG_USAGE)
    except (FileNotFoundError, PermissionError, UserError) as error:
        exit_with(str(error), 1)
    except LostProcess as error:
        exit_with(str(error), error.status)
    except KeyboardInterrupt:
        advice = "" if args.eval_only else "; --resume goes on from the last checkpoint, if there is one"
        print(f"main.py: interrupted{advice}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
