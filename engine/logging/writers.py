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


def build_writers(cfg: DictConfig, start: int) -> list[EventWriter]:
    """Build the writers that a run's config names.

    Args:
        cfg: complete, without the model in it.
        start: first iteration; 0 is a new run, more a resume, which replaces what came after it.

    Raises:
        ConfigError: train.wandb is neither null nor a project's name, or wandb is not installed.
    """
    settings = cfg.train
    folder = settings.output_dir
    writers: list[EventWriter] = []
    if (project := settings.wandb) is not None:
        if not isinstance(project, str) or not project:
            raise ConfigError(f"train.wandb must be the name of a project, or null, got {project!r}")
        writers.append(WandbWriter(project, folder, cfg, start))  # the first one: it may be refused
    writers += [ProgressWriter(settings.max_iter, settings.iterations_per_epoch), JsonWriter(folder, start)]
    # The last one: it clears the images that it has written.
    return [*writers, TensorboardXWriter(folder, WINDOW, purge_step=start)]


class NewScalars(EventWriter):
    """A writer of scalars that were not written before."""

    _last_iteration = -1

    def new_scalars(self, storage: EventStorage) -> dict[int, dict[str, float]]:
        """Return iteration -> name -> value, ascending. A noisy value is the median of its last 20 iterations."""
        new: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._last_iteration:
                new.setdefault(iteration, {})[name] = value
        self._last_iteration = max([self._last_iteration, *new])
        return dict(sorted(new.items()))


class JsonWriter(NewScalars):
    """Appends a line to metrics.json for each iteration, {"iteration": 19, "total_loss": 2.4, ...}.

    A new run backs up the file of an earlier run in its folder. If the run was killed within a line, a resume begins a
    new line.

    Args:
        folder: folder of the run.
        start: first iteration; 0 is a new run, more a resume.
    """

    def __init__(self, folder: str | Path, start: int) -> None:
        self._path = Path(folder, METRICS_NAME)
        content = self._path.read_bytes() if self._path.is_file() else b""
        if content and start == 0:
            backup(self._path, "an earlier training")
        elif content and not content.endswith(b"\n"):
            with self._path.open("ab") as file:
                file.write(b"\n")

    def write(self) -> None:
        rows = self.new_scalars(get_event_storage()).items()
        lines = (json.dumps({**scalars, "iteration": iteration}, sort_keys=True) for iteration, scalars in rows)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


class WandbWriter(NewScalars):
    """Sends scalars and images to Weights & Biases, or keeps them in the folder if WANDB_MODE is offline.

    A resume continues the run with the id in the folder's file wandb_id. The iteration is a metric, and the axis of all
    other metrics: wandb drops what comes for a step that it has seen, as after a resume.

    Args:
        project: name of the project.
        folder: folder of the run; its last part is the run's name.
        cfg: complete config; it is sent with its interpolations resolved.
        start: first iteration; 0 is a new run, more a resume.

    Raises:
        ConfigError: wandb is not installed, or cannot start a run.
    """

    def __init__(self, project: str, folder: str | Path, cfg: DictConfig, start: int) -> None:
        try:
            self._wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                f"train.wandb is {project!r}, but wandb cannot be imported ({error}): pip install wandb, "
                "or set train.wandb=null"
            ) from error
        folder = Path(folder)
        id_path = folder / "wandb_id"
        if start == 0 or not id_path.is_file():
            write_text(id_path, uuid.uuid4().hex)
        settings = write_names(OmegaConf.to_container(cfg, resolve=True))
        try:
            self._run: Any = self._wandb.init(
                project=project,
                name=folder.resolve().name,
                id=id_path.read_text().strip(),
                resume="allow",
                dir=str(folder),
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
        for iteration, scalars in self.new_scalars(get_event_storage()).items():
            self._run.log({**scalars, "iteration": iteration})
        for name, image, iteration in get_event_storage()._vis_data:  # detectron2 has no other way to them
            pixels = (255 * image.transpose(1, 2, 0)).round().astype("uint8")
            self._run.log({name: self._wandb.Image(pixels, file_type="jpg"), "iteration": iteration})

    def close(self) -> None:
        self._run.finish()


class ProgressWriter(EventWriter):
    """Logs a line: time left, iteration, epoch, losses, rates, times and memory.

    The time left counts only steps, not evaluations.

    Args:
        max_iter: length of the run in iterations.
        iterations_per_epoch: for the epoch, which is counted in seen data: 0.5 in the middle of the first.
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
