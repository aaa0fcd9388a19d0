"""Write the metrics of a run to the log, metrics.json, TensorBoard and, if configured, Weights & Biases."""

import datetime
import importlib
import json
import logging
import uuid
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventStorage, EventWriter, TensorboardXWriter, get_event_storage
from omegaconf import DictConfig, OmegaConf

from engine.config.targets import write_names
from engine.interrupts import write_text
from runtime.atomic_write import backup
from runtime.errors import ConfigError

logger = logging.getLogger(__name__)

WINDOW = 20
"""Iterations over which noisy metrics are a median."""

ETA_WINDOW = 1000

METRICS_NAME = "metrics.json"


def build_writers(cfg: DictConfig) -> "list[RunWriter]":
    """Build the writers that a run's config names.

    Args:
        cfg: whole, without the model in it.

    Raises:
        ConfigError: train.wandb is neither null nor a project's name, or wandb is not installed.
    """
    settings = cfg.train
    folder = settings.output_dir
    writers: list[RunWriter] = []
    if (project := settings.wandb) is not None:
        if not isinstance(project, str) or not project:
            raise ConfigError(f"train.wandb must be the name of a project, or null, got {project!r}")
        writers.append(WandbWriter(project, folder, cfg))  # the first one: it may be refused
    writers += [ProgressWriter(settings.max_iter, settings.iterations_per_epoch), JsonWriter(folder)]
    return [*writers, TensorBoardWriter(folder)]  # the last one: it clears the pictures that it has written


class RunWriter(EventWriter):
    """A writer that is told where its training starts."""

    def begin(self, start_iteration: int) -> None:
        """Get ready for what comes from an iteration on; 0 is a new training, more a resume."""


class NewScalars:
    """Scalars of an `EventStorage` that were not asked for before."""

    def __init__(self) -> None:
        self._last_iteration = -1

    def take(self, storage: EventStorage) -> dict[int, dict[str, float]]:
        """Give iteration -> name -> value, ascending; what is noisy is the median of its last 20 iterations."""
        new: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._last_iteration:
                new.setdefault(iteration, {})[name] = value
        self._last_iteration = max([self._last_iteration, *new])
        return dict(sorted(new.items()))


class JsonWriter(RunWriter):
    """Appends a line to metrics.json for each iteration, {"iteration": 19, "total_loss": 2.4, ...}.

    A new training sets the file of an earlier one in its folder aside. After a kill in the midst of a line, a resume
    begins a new one.

    Args:
        folder: of the training.
    """

    def __init__(self, folder: str | Path) -> None:
        self._path = Path(folder, METRICS_NAME)
        self._new = NewScalars()

    def begin(self, start_iteration: int) -> None:
        if not self._path.is_file() or self._path.stat().st_size == 0:
            return
        if start_iteration == 0:
            backup(self._path, "an earlier training")
        elif not self._path.read_bytes().endswith(b"\n"):
            self._append("\n")

    def write(self) -> None:
        rows = self._new.take(get_event_storage()).items()
        lines = (json.dumps({**scalars, "iteration": iteration}, sort_keys=True) for iteration, scalars in rows)
        self._append("".join(f"{line}\n" for line in lines))

    def _append(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)


class TensorBoardWriter(TensorboardXWriter, RunWriter):
    """detectron2's writer of scalars and pictures; what a resume does again replaces what was there.

    Args:
        folder: of the training.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(str(folder), WINDOW)

    def begin(self, start_iteration: int) -> None:
        self._writer_args["purge_step"] = start_iteration


class WandbWriter(RunWriter):
    """Sends scalars and pictures to Weights & Biases, or keeps them below the folder where WANDB_MODE=offline says so.

    A resume goes on with the run whose id the folder's wandb_id holds. The iteration is a metric of its own, and the
    axis of all others: wandb drops what comes for a step that it has seen, as after a resume.

    Args:
        project: name of the project.
        folder: of the training; its last part is the run's name.
        cfg: the whole config, sent with all that follows worked out.

    Raises:
        ConfigError: wandb is not installed, or `begin` cannot start a run.
    """

    def __init__(self, project: str, folder: str | Path, cfg: DictConfig) -> None:
        try:
            self._wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                f"train.wandb is {project!r}, but wandb cannot be imported ({error}): pip install wandb, "
                "or set train.wandb=null"
            ) from error
        self._project, self._folder, self._cfg = project, Path(folder), cfg
        self._new = NewScalars()
        self._run: Any = None

    def begin(self, start_iteration: int) -> None:
        id_path = self._folder / "wandb_id"
        if start_iteration == 0 or not id_path.is_file():
            write_text(id_path, uuid.uuid4().hex)
        settings = write_names(OmegaConf.to_container(self._cfg, resolve=True))
        try:
            self._run = self._wandb.init(
                project=self._project,
                name=self._folder.resolve().name,
                id=id_path.read_text().strip(),
                resume="allow",
                dir=str(self._folder),
                config=settings,
                settings=self._wandb.Settings(console="off"),  # log.txt has it
            )
        except (self._wandb.errors.Error, ValueError) as error:  # the second for its variables
            raise ConfigError(
                f"Weights & Biases does not start ({' '.join(str(error).split())}): log in by `wandb login`, keep the "
                "run here by WANDB_MODE=offline, or set train.wandb=null; its variables begin with WANDB_"
            ) from error
        self._run.define_metric("*", step_metric="iteration")

    def write(self) -> None:
        for iteration, scalars in self._new.take(get_event_storage()).items():
            self._run.log({**scalars, "iteration": iteration})
        for name, picture, iteration in get_event_storage()._vis_data:  # detectron2 has no other way to them
            pixels = (255 * picture.transpose(1, 2, 0)).round().astype("uint8")
            self._run.log({name: self._wandb.Image(pixels, file_type="jpg"), "iteration": iteration})

    def close(self) -> None:
        self._run.finish()


class ProgressWriter(RunWriter):
    """Logs a line: time left, iteration, epoch, losses, rates, times and memory.

    The time left is that of the steps alone, without evaluations.

    Args:
        max_iter: iterations in all.
        iterations_per_epoch: for the epoch; it is counted as passed data, 0.5 in the middle of the first.
    """

    def __init__(self, max_iter: int, iterations_per_epoch: int) -> None:
        self._max_iter, self._iterations_per_epoch = max_iter, iterations_per_epoch

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter < self._max_iter:  # what comes after the last iteration is no progress
            logger.info("  ".join(self._parts(storage)))

    def _parts(self, storage: EventStorage) -> list[str]:
        done = storage.iter + 1
        values = {name: value for name, (value, _) in storage.latest_with_smoothing_hint(WINDOW).items()}
        parts = []
        if "time" in values:
            left_s = storage.history("time").median(ETA_WINDOW) * (self._max_iter - done)
            storage.put_scalar("eta_seconds", left_s, smoothing_hint=False)
            parts += [f"eta: {datetime.timedelta(seconds=int(left_s))}"]
        epochs = self._max_iter / self._iterations_per_epoch
        parts += [
            f"iter: {storage.iter} of {self._max_iter}",
            f"epoch: {done / self._iterations_per_epoch:.2f} of {epochs:g}",
        ]
        shown = {name: f"{name}: {{:.4g}}" for name in values if "loss" in name and "/" not in name}
        shown |= {"grad_norm": "grad_norm: {:.4g}", "lr": "lr: {:.4g}", "time": "time: {:.3f} s"}
        shown |= {"data_time": "data_time: {:.3f} s", "images_per_second": "{:.1f} images/s"}
        shown |= {"gpu_memory_gb": "GPU memory: {:.1f} GB", "memory_gb": "memory: {:.1f} GB"}
        shown |= {name: f"{name}: {{:.0f}}" for name in ("skipped_steps", "faulty_samples") if values.get(name)}
        return parts + [text.format(values[name]) for name, text in shown.items() if name in values]
