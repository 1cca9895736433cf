"""Batches of a training epoch: shuffled or hard-mined, without false negatives, the same on every process.

An item is an aerial tile that is the positive of some panorama; a visit shows it with one of its panoramas. No batch
holds two panoramas that share a tile, positive or semi-positive: each would be a false negative of the other.
"""

import numpy as np
import torch
from torch.utils.data import Sampler

from dataset.mining import DescriptorMemory
from utils import distributed
from utils.geodesy import nearest_places
from utils.options import UserError
from utils.paper import MINING_NEIGHBOURS

GUARDS = ("strict", "release")
RANDOM_DRAWS = 200  # tries at a random partner before every item is tried
LAYOUT_TRIES = 10  # attempts to lay out an epoch of a set so small that no batch could be filled


class MiningSampler(Sampler):
    """Yields, epoch by epoch, this process's share of global batches of panorama indices.

    Epoch 0, and every epoch without mining, is a shuffle. From epoch 1 on, each batch is half random anchors and half
    mined partners, their hard negatives: for each anchor one of the 100 items whose aerial descriptor is most similar
    to its ground descriptor (method section; the released sampler). Anchor and partner go to the same process. Anchors
    follow each other in cycles through all items; those for which an epoch has no room come first in the next, so that
    an epoch visits no item more than `visits` times unless overlapping tiles force it to.

    Args:
        tiles: (N, T) int tiles that cover each panorama, the positive first, -1 for none (`PairDataset.tiles`).
        batch_size: pairs of all processes together; lowered to a multiple of the processes, and where the set has
            fewer places without a common tile.
        visits: times an epoch visits each item (VIGOR 2, else 1).
        mining: hard negatives from epoch 1 on; needs `dim`, the numbers in a descriptor.
        positions: `utils.geodesy.Positions` of the set, for `near_epochs`.
        near_epochs: number of first epochs in which the hard partners are the 100 items nearest on the map (not in
            the paper).
        rank, world_size: whose share to yield; default: this process's.
        seed: every epoch is a function of (seed, epoch, what the memory holds).
        guard: "strict", or "release": as in the published code (anchors unguarded, panorama labels looked up at tile
            positions), which lets false negatives into VIGOR's batches.
        device: device of the descriptor memory, which only rank 0 holds.

    `plan(epoch)` must be called, on every process, before an epoch is iterated; rank 0 computes, the others receive.
    `update(indices, q, k)` feeds the memory after each forward pass.

    Raises:
        UserError: the batch, or the set, is too small for two pairs a process.
    """

    def __init__(
        self,
        tiles,
        batch_size,
        visits=1,
        mining=False,
        dim=None,
        rank=None,
        world_size=None,
        seed=0,
        guard="strict",
        device="cpu",
        positions=None,
        near_epochs=0,
    ):
        if guard not in GUARDS:
            raise ValueError(f"guard is {guard!r}; expected one of {', '.join(GUARDS)}")
        self.rank = distributed.rank() if rank is None else rank
        self.world_size = distributed.world_size() if world_size is None else world_size
        self.tiles, self.visits = np.asarray(tiles), visits
        self.mining, self.seed, self.guard = mining, seed, guard
        positives, self.item_of = np.unique(self.tiles[:, 0], return_inverse=True)
        self.items = len(positives)
        self.near_epochs, self.near = near_epochs, None
        if near_epochs and distributed.is_main():
            self.near = nearest_places(positions.gallery[positives], positions.kind, MINING_NEIGHBOURS)
        by_item = np.argsort(self.item_of, kind="stable")
        self.panoramas_of = np.split(by_item, np.cumsum(np.bincount(self.item_of))[:-1])
        self.covered = [tuple(t for t in row if t >= 0) for row in self.tiles.tolist()]
        self.batch_size = self._fit(batch_size)
        self.queue = np.empty(0, dtype=np.int64)  # items still to be anchors
        self.epoch_plan, self.counts = None, {}
        self.memory = DescriptorMemory(self.items, dim, device) if mining and distributed.is_main() else None
        self.item_of_on_device = torch.from_numpy(self.item_of).to(device)

    @property
    def share(self):
        """Pairs of a batch that each process gets."""
        return self.batch_size // self.world_size

    def __len__(self):
        """Batches of the planned epoch, or of a full one before any plan."""
        return self._full_epoch() if self.epoch_plan is None else len(self.epoch_plan)

    def __iter__(self):
        if self.epoch_plan is None:
            raise RuntimeError("plan(epoch) must be called before the epoch is iterated")
        for batch in self.epoch_plan:
            yield batch[self.rank * self.share : (self.rank + 1) * self.share].tolist()

    def plan(self, epoch):
        """Lay out the global batches of an epoch, (batches, batch_size) panorama indices, equal on every process."""
        made = self._lay_out(epoch) if distributed.is_main() else None
        self.epoch_plan, self.queue, self.counts = distributed.broadcast_object(made)
        return self.epoch_plan

    def continue_plan(self, plan, counts):
        """Take an epoch's plan from a checkpoint instead of laying it out."""
        self.epoch_plan, self.counts = plan.numpy(), counts

    def update(self, indices, q, k):
        """Remember this process's descriptors: (share,) panorama indices, q and k (share, dim) of any float type."""
        if not self.mining:
            return
        indices = indices.to(q.device, non_blocking=True)
        rows = torch.cat([q.detach().float(), k.detach().float(), indices[:, None].float()], dim=1)
        rows = distributed.gather_to_main(rows)  # one collective a step; indices are exact in float32 below 2**24
        if self.memory is not None:
            dim = q.shape[1]
            items = self.item_of_on_device[rows[:, -1].long()]
            self.memory.update(items, rows[:, :dim], rows[:, dim : 2 * dim])

    def state_dict(self):
        """What a resumed training needs to continue exactly: the anchors still due and rank 0's memory."""
        state = {"queue": torch.from_numpy(self.queue), "items": self.items}
        return state | {"memory": self.memory.state_dict()} if self.memory is not None else state

    @staticmethod
    def fits(state):
        """Whether a dict is a sampler's state: anchors within the set, and whole tensors for the memory, if any."""
        queue, items, memory = (state.get(name) for name in ("queue", "items", "memory"))
        if not (isinstance(items, int) and isinstance(queue, torch.Tensor) and queue.ndim == 1):
            return False
        within = not len(queue) or (int(queue.min()) >= 0 and int(queue.max()) < items)
        parts = [] if memory is None else [memory.get(name) for name in ("ground", "aerial", "seen")]
        return within and all(isinstance(part, torch.Tensor) and len(part) == items for part in parts)

    def load_state_dict(self, state):
        """Raises: UserError: the state belongs to another training set."""
        if state.get("items") != self.items:
            raise UserError(
                f"the checkpoint was trained on {state.get('items')} items, this training set has {self.items}; "
                "resume with the data it was trained on"
            )
        self.queue = state["queue"].numpy()
        if self.memory is not None and "memory" in state:
            self.memory.load_state_dict(state["memory"])

    # Laying out an epoch, on rank 0.

    def _full_epoch(self):
        return max(1, self.items * self.visits // self.batch_size)

    def _fit(self, batch_size):
        """The batch size, lowered to equal shares and to the places of the set that do not overlap."""
        room = self._disjoint_items(batch_size)
        fitting = room // self.world_size * self.world_size
        if batch_size < 2 * self.world_size:
            raise UserError(
                f"--batch-size {batch_size} leaves {self.world_size} process(es) fewer than two pairs each; pass at "
                f"least {2 * self.world_size}"
            )
        if fitting < 2 * self.world_size:
            raise UserError(
                f"the training set has {self.items} places, {room} of them without a common tile; {self.world_size} "
                f"process(es) require at least {2 * self.world_size}: add data or use fewer processes"
            )
        return fitting

    def _disjoint_items(self, wanted):
        """How many items without a common tile a greedy search finds, at most `wanted`."""
        if self.guard == "release" or self.tiles.shape[1] == 1:
            return min(wanted, self.items)
        fewest = wanted
        for attempt in range(5):
            generator = np.random.default_rng((self.seed, attempt))
            batch = _Batch(self, generator)
            for item in generator.permutation(self.items):
                if len(batch.panoramas) < wanted:
                    batch.add(item)
            fewest = min(fewest, len(batch.panoramas))
            if attempt == 0 and fewest == wanted:
                break
        return fewest

    def _lay_out(self, epoch):
        generator = np.random.default_rng((self.seed, epoch))
        by_map = epoch < self.near_epochs
        hard_half = by_map or (self.mining and epoch > 0 and bool(self.memory.seen.any()))
        partners = self.share // 2 if hard_half else 0  # per process
        anchors = self.world_size * (self.share - partners)  # per batch
        for _ in range(LAYOUT_TRIES):
            self._refill(generator, self._full_epoch() * anchors)
            batches = [self._draw_anchors(generator, anchors) for _ in range(self._full_epoch())]
            if partners:
                self._add_partners(batches, partners, generator, by_map)
            full = [batch for batch in batches if len(batch.panoramas) == self.batch_size]
            for batch in batches:
                if len(batch.panoramas) < self.batch_size:
                    self.queue = np.append(self.queue, np.array(batch.items[:anchors], dtype=np.int64))
            if full:
                counts = {how: sum(batch.partners.count(how) for batch in full) for how in ("mined", "random")}
                counts["short"] = len(batches) - len(full)
                plan = np.array([batch.by_process(self.world_size, partners) for batch in full], dtype=np.int64)
                return plan, self.queue, counts
        raise UserError(
            f"no batch of {self.batch_size} places without a common tile could be formed from {self.items} places; "
            "pass a smaller --batch-size"
        )

    def _add_partners(self, batches, partners, generator, by_map):
        """Fill the batches with hard partners of the first `partners` anchors of each process."""
        anchors = self.share - partners
        items = [item for batch in batches for item in batch.items]
        hard = {item: self.near[item] for item in items} if by_map else self._hard_negatives(items, generator)
        for batch in batches:
            for position, anchor in enumerate(list(batch.items)):
                if position % anchors < partners:
                    batch.add_partner(hard.get(anchor, ()))

    def _refill(self, generator, wanted):
        """Append a cycle to the queue if it holds fewer than the `wanted` anchors of an epoch.

        What the queue still holds is left over from the last cycle. Those items come last in the new cycle, after the
        anchors of this epoch, so that the epoch does not visit them again.
        """
        if len(self.queue) < wanted:
            cycle = generator.permutation(np.repeat(np.arange(self.items), self.visits))
            visit = np.empty_like(cycle)  # how often the same item stands before this place
            visit[np.argsort(cycle, kind="stable")] = np.arange(len(cycle)) % self.visits
            late = visit < np.bincount(self.queue, minlength=self.items)[cycle]
            self.queue = np.concatenate([self.queue, cycle[~late], cycle[late]])

    def _draw_anchors(self, generator, count):
        """A batch with its anchors, the next in the queue that share no tile; those passed over stay in front."""
        batch, passed, scanned = _Batch(self, generator), [], 0
        while len(batch.panoramas) < count:
            if scanned == len(self.queue):
                if len(passed) > 2 * self.items * self.visits:
                    break  # every item has been tried: the batch stays short
                self._refill(generator, len(self.queue) + 1)
            item = int(self.queue[scanned])
            scanned += 1
            if not batch.add(item, guarded=self.guard == "strict"):
                passed.append(item)
        self.queue = np.concatenate([np.array(passed, dtype=np.int64), self.queue[scanned:]])
        return batch

    def _hard_negatives(self, anchors, generator):
        """{item: its hard items} for the anchors that the memory knows."""
        anchors = torch.from_numpy(np.unique(np.array(anchors)))
        anchors = anchors[self.memory.seen.cpu()[anchors]]
        lists = self.memory.hard_negatives(anchors, generator)
        return dict(zip(anchors.tolist(), lists.numpy(), strict=True))


class _Batch:
    """A global batch in the making: its items and panoramas, and the tiles they cover."""

    def __init__(self, sampler, generator):
        self.sampler, self.generator = sampler, generator
        self.items, self.panoramas, self.used = [], [], set()
        self.partners = []  # how each anchor got its partner: "mined", "random", or None if none fitted

    def add(self, item, guarded=True):
        """Add the item with one of its panoramas that shares no tile with the batch; False where there is none."""
        sampler = self.sampler
        panoramas = sampler.panoramas_of[item]
        order = self.generator.permutation(len(panoramas)) if len(panoramas) > 1 else (0,)
        for i in order:
            panorama = int(panoramas[i])
            # The release looks the panorama's labels up at the tile's position.
            covered = sampler.covered[panorama if sampler.guard == "strict" else item]
            if not guarded or self.used.isdisjoint(covered):
                self.items.append(item)
                self.panoramas.append(panorama)
                self.used.update(covered)
                return True
        return False

    def add_partner(self, hard):
        """Add a partner: one of the anchor's hard items ("mined"), else any that fits ("random"), else none (None)."""
        mined = any(self.add(int(hard[i])) for i in self.generator.permutation(len(hard)))
        self.partners.append("mined" if mined else "random" if self._drawn_partner() else None)

    def _drawn_partner(self):
        """Add any item that fits; False if none does."""
        items = self.sampler.items
        if any(self.add(int(self.generator.integers(items))) for _ in range(RANDOM_DRAWS)):
            return True
        if any(self.add(int(item)) for item in self.generator.permutation(items)):
            return True
        if self.sampler.guard == "strict":
            return False
        others = np.setdiff1d(np.arange(items), self.items)  # the release does not guard its anchors either
        return len(others) > 0 and self.add(int(self.generator.choice(others)), guarded=False)

    def by_process(self, world_size, partners):
        """(batch_size,) panoramas, process after process: anchors each followed by its partner, then anchors without.

        So a tuple of fewer pairs than a process has, if their number is even, holds the partners of its anchors.
        """
        panoramas = np.array(self.panoramas)
        anchors = len(panoramas) - world_size * partners
        own = panoramas[:anchors].reshape(world_size, -1)
        mined = panoramas[anchors:].reshape(world_size, partners)
        pairs = np.stack([own[:, :partners], mined], axis=2).reshape(world_size, 2 * partners)
        return np.concatenate([pairs, own[:, partners:]], axis=1).ravel()
