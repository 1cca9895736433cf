"""A moving average of a model's weights, which is evaluated and kept in the model's place."""

import torch
from torch.optim.swa_utils import AveragedModel


class WeightAverage:
    """Exponential moving average of weights and buffers; its decay grows towards `decay` as steps go by.

    The paper has none. The decay of step t is at most 1 - t^(-2/3), timm's warm-up: a short run does not average its
    random start.

    Args:
        model: network whose weights are averaged, its present ones first.  decay: 0 < decay < 1.

    Attributes:
        model: a copy of the network that holds the average.  steps: updates so far.
    """

    def __init__(self, model, decay):
        self.decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)
        self.model = self._averaged.module

    @property
    def steps(self):
        return int(self._averaged.n_averaged)

    @steps.setter
    def steps(self, count):
        self._averaged.n_averaged.fill_(count)

    def update(self, model):
        """Move the average towards the model's weights; call after each optimiser step."""
        self._averaged.update_parameters(model)

    @torch.no_grad()
    def _mix(self, averaged, current, steps):
        if not averaged[0].is_floating_point():  # counters of batch norms
            torch._foreach_copy_(averaged, current)
            return
        warm = 1 - (1 + steps.double()) ** (-2 / 3)
        weight = 1 - warm.clamp(max=self.decay).to(averaged[0].dtype)
        for mean, new in zip(averaged, current, strict=True):
            mean.lerp_(new, weight)
