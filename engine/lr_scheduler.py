"""Learning rates by one schedule, which parameter groups may start later."""

from detectron2.engine import hooks
from detectron2.solver import LRMultiplier


class GroupedMultiplier(LRMultiplier):
    """detectron2's multiplier of all rates, but a parameter group with a "start" follows later.

    "start" is a fraction of the run; a group without one has 0. Before it the rate is 0. From it on the multiplier is
    min(m(t), m(t - start)), where m is the schedule. So the group has its own warm-up and then follows the others. At a
    rate of 0 AdamW moves no weight, since the rate multiplies its decay. But its two moments gather gradients, and are
    ready at the group's start.

    Args: as detectron2's.
    """

    def get_lr(self) -> list[float]:
        done = self.last_epoch / self._max_iter
        starts = (group.get("start", 0.0) for group in self.optimizer.param_groups)
        return [
            0.0 if done < start else rate * min(self._multiplier(done), self._multiplier(done - start))
            for rate, start in zip(self.base_lrs, starts, strict=True)
        ]


class LRScheduler(hooks.LRScheduler):
    """detectron2's hook with rates by `GroupedMultiplier`, computed anew from the first iteration of a resume.

    The name is detectron2's: checkpoints hold the hook's state under it, and nothing of that is needed.

    Args:
        scheduler: the schedule, over [0, 1).
    """

    def before_train(self) -> None:
        trainer = self.trainer
        self._scheduler = GroupedMultiplier(trainer.optimizer, self.scheduler, trainer.max_iter, trainer.iter - 1)
        super().before_train()
