"""The memory of global hard-negative mining: last descriptors of every training item, and who is hard for whom."""

import torch
import torch.nn.functional as F

from utils.errors import UserError
from utils.logging import progress_bar
from utils.paper import MINING_NEIGHBOURS, MINING_POOL

ANCHOR_BLOCK = 512  # rows of one similarity block
POOL_BLOCK = 8192  # columns of it


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

        The pool is a random draw of `pool_size` of the items seen so far. Similarities are formed block by block and
        merged into a running top list, so memory is the lists and one block.

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
        anchors = anchors.to(self.ground.device)
        k = min(neighbours, len(pool))
        best = self.ground.new_full((len(anchors), k), -torch.inf)
        who = torch.zeros(len(anchors), k, dtype=torch.int32, device=self.ground.device)
        rounds = [
            (part, rows) for part in range(0, len(pool), POOL_BLOCK) for rows in range(0, len(anchors), ANCHOR_BLOCK)
        ]
        for part, start in progress_bar(rounds, "mining", leave=False):
            if start == 0:
                columns = pool[part : part + POOL_BLOCK]
                gallery = self.aerial[part : part + POOL_BLOCK] if whole else self.aerial[columns]
            rows = slice(start, start + ANCHOR_BLOCK)
            values, position = (self.ground[anchors[rows]] @ gallery.T).topk(min(k, len(columns)), dim=1)
            best[rows], order = torch.cat([best[rows], values], dim=1).topk(k, dim=1)
            who[rows] = torch.cat([who[rows], columns[position].int()], dim=1).gather(1, order)
        return who.long().cpu()

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
