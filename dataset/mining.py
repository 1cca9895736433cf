"""The memory of global hard-negative mining: last descriptors of every training item, and who is hard for whom."""

import torch
import torch.nn.functional as F

from utils.logging import progress_bar
from utils.options import UserError
from utils.paper import MINING_NEIGHBOURS, MINING_POOL
from utils.ranking import narrow_dtype

ANCHORS = 512  # compared with the whole pool at once
ROWS = 4096  # of the pool, converted at once


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
        """Store (n, dim) descriptors, un-normalised, of the (n,) items; of equal items the last."""
        items = items.to(self.seen.device)
        ordered, order = items.sort(stable=True)
        last = order[torch.searchsorted(ordered, items, right=True) - 1]  # equal items write equal rows, in any order
        for memory, rows in ((self.ground, ground), (self.aerial, aerial)):
            memory.index_copy_(0, items, F.normalize(rows.to(memory.device, memory.dtype), dim=1)[last])
        self.seen[items] = True

    @torch.no_grad()
    def hard_negatives(self, anchors, generator, pool_size=MINING_POOL, neighbours=MINING_NEIGHBOURS):
        """For each anchor the pool's items whose aerial descriptors are most similar to its ground descriptor.

        The pool is a random draw of `pool_size` of the items seen so far. Similarities are compared in bfloat16, less
        those with the pool's mean (one number for each anchor, which leaves its order as it is): nearly all of the
        exact items are found. Memory is the pool in bfloat16 and the similarities of 512 anchors.

        Args:
            anchors: (n,) int64 item numbers, all seen.  generator: NumPy generator of the draw.

        Returns:
            (n, min(neighbours, pool)) int64 items, most similar first, on the CPU. The anchor itself is among them
            where it is in the pool.
        """
        device = self.aerial.device
        pool = self.seen.nonzero().squeeze(1).cpu().numpy()
        if len(pool) > pool_size:
            pool = generator.choice(pool, pool_size, replace=False)
        pool = torch.from_numpy(pool).to(device)
        mean = sum(self.aerial[rows].sum(dim=0) for rows in pool.split(ROWS)) / len(pool)
        centred = torch.empty(len(pool), len(mean), dtype=torch.bfloat16, device=device)
        for own, rows in zip(centred.split(ROWS), pool.split(ROWS), strict=True):
            own.copy_(self.aerial[rows] - mean)
        dtype = narrow_dtype(device) or torch.float32
        found = []
        for rows in progress_bar(anchors.split(ANCHORS), "mining"):
            ground = self.ground[rows.to(device)].to(dtype)
            similarity = torch.cat([ground @ part.to(dtype).T for part in centred.split(ROWS)], dim=1)
            found.append(pool[similarity.topk(min(neighbours, len(pool)), dim=1).indices].cpu())
        return torch.cat(found)

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
