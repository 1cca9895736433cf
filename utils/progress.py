"""How far an epoch has come."""

from dataclasses import dataclass, field

import torch

from utils import distributed
from utils.seeding import seed_process


@dataclass
class EpochProgress:
    """How far an epoch has come: with the rest of a checkpoint, enough to continue it as if never stopped."""

    step: int
    seconds: float  # before a resume
    totals: torch.Tensor  # (3,) float64 sums of loss, positive and negative similarity, of this process
    window: torch.Tensor  # the same since the last log line
    window_steps: int = 0  # steps in it
    random: dict | None = None  # states of PyTorch's generators
    recent: list = field(default_factory=list)  # (values, indices) of the steps since the last check
    bad: int = 0  # steps in a row that were not taken
    left_out: int = 0  # steps of the epoch that were not taken

    @classmethod
    def start(cls, inside, device):
        """At the epoch's beginning, or where a checkpoint's `inside` says.

        If the number of processes has changed, sums and random numbers of each process are not those of before.
        """
        zeros = torch.zeros(3, dtype=torch.float64, device=device)
        if not inside:
            return cls(0, 0.0, zeros, zeros.clone())
        ranks = inside["ranks"]
        own = ranks[distributed.rank()] if len(ranks) == distributed.world_size() else ranks[0] | {"random": None}
        totals, window = (own[name].to(device) for name in ("totals", "window"))
        counts = {name: inside.get(name, 0) for name in ("bad", "left_out")}
        counts["window_steps"] = inside.get("window_steps", inside["step"])
        return cls(inside["step"], inside["seconds"], totals, window, random=own["random"], **counts)

    def add(self, values, indices):
        """Count a step with its (3,) values and the indices of its pairs."""
        self.step += 1
        self.totals += values
        self.window += values
        self.window_steps += 1
        self.recent.append((values, indices))
        self.bad = 0

    def logged(self):
        """Mean values since the last call, as numbers; waits for the device."""
        means = (self.window / max(1, self.window_steps)).tolist()
        self.window.zero_()
        self.window_steps = 0
        return means

    def leave_out(self):
        """Count a step that was not taken."""
        self.step += 1
        self.bad += 1
        self.left_out += 1

    def first_bad(self):
        """(step, indices) of the first step since the last call with a value that is not finite, or None; waits for
        the device."""
        recent, self.recent = self.recent, []
        good = torch.stack([values for values, _ in recent]).isfinite().all(1).tolist() if recent else [True]
        return None if all(good) else (self.step - len(recent) + 1 + good.index(False), recent[good.index(False)][1])

    def set_random(self, seed, epoch):
        """The epoch's random numbers from its beginning, or those that come next."""
        seed_process(seed, epoch, distributed.rank())
        if self.random:
            torch.set_rng_state(self.random["cpu"])
            if "cuda" in self.random and torch.cuda.is_available():
                torch.cuda.set_rng_state(self.random["cuda"])

    def state(self, sampler, seconds):
        """For the checkpoint; every process calls it."""
        random = {"cpu": torch.get_rng_state()}
        if self.totals.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state()
        own = {"totals": self.totals.cpu(), "window": self.window.cpu(), "random": random}
        return {
            "step": self.step,
            "window_steps": self.window_steps,
            "bad": self.bad,
            "left_out": self.left_out,
            "seconds": self.seconds + seconds,
            "plan": torch.from_numpy(sampler.epoch_plan),
            "counts": sampler.counts,
            "ranks": distributed.gather_objects(own),
        }
