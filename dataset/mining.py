"""The memory of global hard-negative mining: last descriptors of every training item, and who is hard for whom."""

import torch
import torch.nn.functional as F

from dataset.neighbours import UnitRows, nearest_rows
from utils.errors import UserError
from utils.paper import MINING_NEIGHBOURS, MINING_POOL


class DescriptorMemory:
    """Last L2-normalised float32 descriptor of every item in each view, and which items have been seen.

    Args:
        items: number of items.  dim: numbers in a descriptor.  device: where the two (items, dim) tensors lie.
    """

    def __init__(self, items, dim, device="cpu"):
        self.ground = torch.zeros(items, dim, device=device)
        self.aerial = torch.zeros(items, dim, device=device)
        self.seen = torch.zeros(items, dtype=torch.bool, device=device)

    @torch.no_grad()
    def update(self, items, ground, aerial):
        """Store (n, dim) descriptors, un-normalised, of the (n,) items; no item twice in one call."""
        for memory, rows in ((self.ground, ground), (self.aerial, aerial)):
            memory.index_copy_(0, items, F.normalize(rows.float(), dim=1).to(memory.device))
        self.seen[items] = True

    @torch.no_grad()
    def hard_negatives(self, anchors, generator, pool_size=MINING_POOL, neighbours=MINING_NEIGHBOURS):
        """For each anchor the pool's items whose aerial descriptors are most similar to its ground descriptor.

        The pool is a random draw of `pool_size` of the items seen so far. Similarities are formed block by block
        (`nearest_rows`), so memory is the lists, a block, and at most the pool in bfloat16.

        Args:
            anchors: (n,) int64 item numbers, all seen.  generator: NumPy generator of the draw.

        Returns:
            (n, min(neighbours, pool)) int64 items, most similar first, on the CPU. The anchor itself is among them
            where it is in the pool.
        """
        seen = self.seen.nonzero().squeeze(1).cpu().numpy()
        whole = len(seen) == len(self.seen) <= pool_size
        if len(seen) > pool_size:
            seen = generator.choice(seen, pool_size, replace=False)
        pool = torch.from_numpy(seen).to(self.aerial.device)
        rows = UnitRows(self.aerial, None if whole else pool)
        found = nearest_rows(UnitRows(self.ground, anchors.to(pool.device)), rows, min(neighbours, len(pool)))
        return pool[found].cpu()

    def state_dict(self):
        return {"ground": self.ground.cpu(), "aerial": self.aerial.cpu(), "seen": self.seen.cpu()}

    def load_state_dict(self, state):
        """Raises: UserError: the state belongs to another training set or another descriptor size."""
        if state["ground"].shape != self.ground.shape:
            raise UserError(
                f"the checkpoint's mining memory is {tuple(state['ground'].shape)}, this run's "
                f"{tuple(self.ground.shape)} (items, numbers); resume with the data and model it was trained on"
            )
        for name in ("ground", "aerial", "seen"):
            getattr(self, name).copy_(state[name])
