"""Send the messages of a run to the console, and to log.txt as long as it can be written."""

import logging
import os
import sys
import threading
from collections.abc import Iterable

from detectron2.utils.logger import setup_logger

from engine.interrupts import OutputError


class LogFile(logging.StreamHandler):
    """Handler of log.txt. If a line cannot be written, it reports that once and writes nothing more.

    A run does not end because of a line of its log. If the disk is full, the next metrics or checkpoint report it.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        # In the file's place for all who write to it, since what is in its buffer would fail again, up to the exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        logging.getLogger(record.name).warning("Nothing more is written to %s: %s", self.stream.name, error.strerror)


def set_up_logs(folder: str, rank: int, packages: Iterable[str]) -> None:
    """Send the messages of some packages to the console and to log.txt; those of rank n > 0 to log.txt.rankn alone.

    Args:
        folder: folder of the run; it is made.
        rank: of this process.
        packages: top-level names.

    Raises:
        OutputError: where the folder cannot be made or written.
    """
    threading.excepthook = _tell_of_thread
    # detectron2 logs each error that leaves its loop, those of users included: main.py chooses what is logged.
    logging.getLogger("detectron2.engine.train_loop").addFilter(lambda record: record.exc_info is None)
    for name in packages:
        try:
            logger = setup_logger(folder, distributed_rank=rank, name=name)
        except OSError as error:
            raise OutputError(f"train.output_dir={folder} cannot be written as a folder: {error.strerror}") from error
        for handler in [*logger.handlers]:
            if type(handler) is logging.StreamHandler and "log.txt" in str(getattr(handler.stream, "name", "")):
                file = LogFile(handler.stream)
                file.setLevel(handler.level)
                file.setFormatter(handler.formatter)
                logger.removeHandler(handler)
                logger.addHandler(file)


def _tell_of_thread(failure: threading.ExceptHookArgs) -> None:
    """Say in one line what ended a thread that writes; TensorBoard's raises it again where it is used next."""
    if isinstance(failure.exc_value, OSError):
        logging.getLogger(__name__).warning("A thread that writes files has ended: %s", failure.exc_value)
    else:
        threading.__excepthook__(failure)
