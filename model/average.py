"""A moving average of a model's weights, which is evaluated and kept in the model's place."""

from timm.utils import ModelEmaV3


class WeightAverage:
    """Exponential moving average of weights and buffers; its decay grows towards `decay` as steps go by.

    The paper has none. The warm-up, timm's, is 1 - step^(-2/3): a short run does not average its random start.

    Args:
        model: network whose weights are averaged, its present ones first.  decay: 0 < decay < 1.

    Attributes:
        model: a copy of the network that holds the average.  steps: updates so far.
    """

    def __init__(self, model, decay, steps=0):
        self.average, self.steps = ModelEmaV3(model, decay=decay, use_warmup=True), steps
        self.model = self.average.module

    def update(self, model):
        """Move the average towards the model's weights; call after each optimiser step."""
        self.steps += 1
        self.average.update(model, step=self.steps)
