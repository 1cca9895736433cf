"""Sharpness-aware minimisation: SAM (Foret et al., ICLR 2021) and ASAM (Kwon et al., ICML 2021)."""

from contextlib import contextmanager

import torch
from torch.nn.utils import get_total_norm

NORM_EPS = 1e-12


class SAM(torch.optim.Optimizer):
    """SAM or ASAM around a base optimiser.

    One step: backward at w; `first_step` climbs to w + e with e = rho * T^2 g / (||T g|| + 1e-12), T = |w| for
    ASAM and 1 for SAM, the norm over all parameters together; backward there; `second_step` returns to w, exactly,
    and takes the base optimiser's step with the second gradient.

    Args:
        params: parameters or parameter groups.
        base_optimizer: class of the base optimiser, e.g. `torch.optim.AdamW`.
        rho: radius of the neighbourhood (the paper: 2.5, adaptive).
        adaptive: ASAM instead of SAM.
        base_kwargs: arguments of the base optimiser.

    The state dict holds the base optimiser's moments, so a resumed run continues as if never stopped.

    Raises:
        ValueError: a negative rho.
        RuntimeError: `second_step` without a `first_step`, or a second `first_step` without it.
    """

    def __init__(self, params, base_optimizer, rho=0.05, adaptive=False, **base_kwargs):
        if not rho >= 0:
            raise ValueError(f"rho is {rho}; expected a number >= 0")
        super().__init__(params, dict(rho=rho, adaptive=adaptive, **base_kwargs))
        self.base_optimizer = base_optimizer(self.param_groups, **base_kwargs)
        self._share_with_base()
        self._origin = None  # [(parameters, their values at w)] between the two steps

    def __getstate__(self):
        """The attributes to copy and pickle."""
        return super().__getstate__() | {"base_optimizer": self.base_optimizer, "_origin": self._origin}

    def __setstate__(self, state):
        super().__setstate__(state)
        if "base_optimizer" in state:  # missing when PyTorch's load_state_dict calls this
            self._share_with_base()

    def _share_with_base(self):
        """One list of groups and one state for both optimisers."""
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)
        self.state = self.base_optimizer.state

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        """Climb from w to w + e."""
        if self._origin is not None:
            raise RuntimeError("first_step() has climbed already: second_step() returns from there")
        climbs, scaled = [], []  # per group: (group, parameters, T g); T g of all groups
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params or group["rho"] == 0:  # nothing to climb, and no part of the norm
                continue
            tg = [p.grad for p in params]
            if group["adaptive"]:  # w g is |w| g but for the sign: the norm is the same, and so is T^2 g = w (w g)
                tg = torch._foreach_mul(params, tg)
            climbs.append((group, params, tg))
            scaled += tg
        self._origin = [(params, [p.clone() for p in params]) for _, params, _ in climbs]
        if scaled:
            norm = get_total_norm(scaled) + NORM_EPS
            for group, params, climb in climbs:
                scale = group["rho"] / norm
                if group["adaptive"]:
                    torch._foreach_mul_(climb, params)
                    torch._foreach_mul_(climb, scale)
                else:  # the gradients themselves, which stay as they are
                    climb = torch._foreach_mul(climb, scale)
                torch._foreach_add_(params, climb)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        """Return to w and step the base optimiser with the gradient found at w + e."""
        if self._origin is None:
            raise RuntimeError("second_step() needs a first_step() before it")
        self.step_back()
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step_back(self):
        """Return to w, if the parameters are at w + e."""
        for params, values in self._origin or ():
            torch._foreach_copy_(params, values)
        self._origin = None

    def step(self, closure=None):
        """Both steps; `closure` zeroes the gradients, evaluates the model and runs backward.

        Expects gradients at w to be there already when called, as the two-step form does.
        """
        if closure is None:
            raise RuntimeError("step() requires a closure; or call first_step() and second_step()")
        self.first_step(zero_grad=True)
        with torch.enable_grad():
            loss = closure()
        self.second_step()
        return loss

    def load_state_dict(self, state_dict):
        """Restore groups and the base optimiser's moments."""
        self.base_optimizer.load_state_dict(state_dict)
        self._share_with_base()

    def state_dict(self):
        return self.base_optimizer.state_dict()


@contextmanager
def frozen_statistics(network):
    """Keep the running statistics of batch norms as they are; each batch is still normalised with its own.

    SAM's second pass runs at w + e, where the network does not stay: only the pass at w updates the statistics.
    """
    norms = [module for module in network.modules() if getattr(module, "track_running_stats", False)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
