"""Learning rates by one schedule, which groups of parameters may begin later."""

from detectron2.engine import hooks
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import ParamScheduler
from torch.optim import Optimizer


class GroupedMultiplier(LRMultiplier):
    """detectron2's multiplier of all rates, but a parameter group with a "start" follows later.

    "start" is a fraction of the training. Before it the rate is 0; from it on the multiplier is that of the schedule or
    of the schedule begun anew at the start, whichever is smaller: the group has a warm-up of its own and then goes with
    the others. At a rate of 0 AdamW moves no weight, since its decay is multiplied by the rate, but its two moments
    gather gradients all the while: at its start a group has them ready.

    Args:
        optimizer: its groups may have "start"; one without has 0.
        multiplier: the schedule, over [0, 1).
        max_iter: iterations in all.
        last_iter: the last one that was done; -1 for none.
    """

    def __init__(self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1) -> None:
        self._starts = [group.get("start", 0.0) for group in optimizer.param_groups]
        super().__init__(optimizer, multiplier, max_iter, last_iter)

    def get_lr(self) -> list[float]:
        done = self.last_epoch / self._max_iter
        return [rate * self._factor(done, start) for rate, start in zip(self.base_lrs, self._starts, strict=True)]

    def _factor(self, done: float, start: float) -> float:
        """Multiplier of a group after a fraction of the training."""
        if done < start:
            return 0.0
        return min(self._multiplier(done), self._multiplier(done - start))


class LRScheduler(hooks.LRScheduler):
    """detectron2's hook, with rates by `GroupedMultiplier`, computed anew from the iteration that a resume begins with.

    The name is theirs: under it checkpoints hold the hook's state, of which nothing is needed.

    Args:
        scheduler: the schedule, over [0, 1).
    """

    def __init__(self, scheduler: ParamScheduler) -> None:
        super().__init__(scheduler=scheduler)

    def before_train(self) -> None:
        trainer = self.trainer
        self._scheduler = GroupedMultiplier(trainer.optimizer, self.scheduler, trainer.max_iter, trainer.iter - 1)
        super().before_train()
