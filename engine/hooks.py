"""What is written of each step."""

from detectron2.engine import hooks
from detectron2.utils.events import CommonMetricPrinter, EventWriter

from engine.trainer import Trainer


class WriteMetrics(hooks.PeriodicWriter):
    """detectron2's hook, but of a step that a stop cut off nothing is written.

    Its printer would put down the time left, and metrics.json get a line for a step that a resume does again.
    """

    trainer: Trainer
    _writers: list[EventWriter]

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            self._writers = [writer for writer in self._writers if not isinstance(writer, CommonMetricPrinter)]
        super().after_train()
