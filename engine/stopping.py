"""Planned ends of a training: between two whole steps, with a message, a checkpoint and an exit status of its own."""

import signal


class TrainingStopped(BaseException):
    """A training that cannot go on; its weights are those of the last whole step.

    All processes raise it in the same step, unless a kind says otherwise. It is no `Exception`, as `KeyboardInterrupt`
    is none: of those detectron2 logs the traceback, which says less than the message.

    Attributes:
        status: the command's exit status.
    """

    status = 1


class StopRequested(TrainingStopped):
    """A signal asked for the end: 130 for SIGINT, else 75, EX_TEMPFAIL of sysexits.h, for which a scheduler requeues.

    Args:
        name: of the signal, such as "SIGTERM".
    """

    status = 75

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} asked for the end of the training")
        if name == signal.SIGINT.name:
            self.status = 130


class LostProcess(TrainingStopped):
    """Another process of the training ended or cannot be reached: each that is left raises it by itself."""

    status = 5


class OutputError(TrainingStopped):
    """The output folder cannot be written: the disk is full, or the folder is gone or read-only. The main process's."""

    status = 6
