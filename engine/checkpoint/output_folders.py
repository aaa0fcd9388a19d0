"""Lock the folders that a run writes to, and check that a resume finds its checkpoints there."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shlex import quote

from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from engine.checkpoint.file import has_checkpoint
from engine.interrupts import OutputError
from runtime.dist_env import describe_tasks
from runtime.errors import ConfigError
from runtime.folder_lock import FolderInUseError, hold_folder
from runtime.identity import find_cluster_jobs

logger = logging.getLogger(__name__)


def check_resume(cfg: DictConfig, config_path: Path) -> None:
    """Refuse a resume without checkpoints if the run's own config.yaml lies in another folder.

    Raises:
        ConfigError: that folder was moved, or train.output_dir is misspelt.
    """
    folder, own = Path(cfg.train.output_dir), config_path.parent
    if config_path.suffix == ".py" or own.resolve() == folder.resolve() or has_checkpoint(folder):
        return
    raise ConfigError(
        f"--resume finds no checkpoint in train.output_dir={folder}, and {config_path} lies in another folder. If that "
        f"is the run's folder, moved, add {quote(f'train.output_dir={own}')}. To start a new run in {folder}, leave "
        "out --resume"
    )


@contextmanager
def hold_outputs(cfg: DictConfig, is_evaluation: bool) -> Iterator[None]:
    """Lock the folders that this run writes to against other runs; the main process does so for all ranks.

    Every rank has to call it. An evaluation writes only predictions, if the config asks for them.

    Raises:
        OutputError: in all ranks, if another run holds a folder or a folder cannot be written.
    """
    keys = ("dataloader.evaluator.output_dir", *(() if is_evaluation else ("train.output_dir",)))
    named = {key: folder for key in keys if (folder := OmegaConf.select(cfg, key))}
    folders = {Path(folder).resolve(): f"{key}={folder}" for key, folder in named.items()}
    failure = ""
    with ExitStack() as stack:
        for folder, setting in folders.items() if comm.is_main_process() else ():
            try:
                stack.enter_context(hold_folder(folder, find_cluster_jobs(), _end_at_once))
            except FolderInUseError as error:
                failure = ". ".join(filter(None, (str(error), describe_tasks())))
            except OSError as error:
                failure = f"{setting} cannot be written as a folder: {error.strerror}"
            if failure:
                break
        if failure := comm.all_gather(failure)[0]:
            raise OutputError(failure)
        yield


def _end_at_once() -> None:
    """End this process after another run has taken its folder, so that it cannot damage that run's files."""
    logger.error("Another run has taken over the output folder, as this one stood still for minutes: it ends at once")
    os._exit(OutputError.status)
