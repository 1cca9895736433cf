"""The loader processes of a run, made once and used for training and every evaluation."""

import os
import resource
import tempfile
import time
from multiprocessing import active_children

from torch.utils.data import DataLoader, Dataset

from utils import distributed
from utils.logging import progress_bar
from utils.options import UserError
from utils.stopping import ignore_in_loader

LONGEST_FOLDER = 75  # bytes; a socket's path has at most 107, of which Python's names in the folder take 32


class Feed:
    """Batches of several datasets from one set of loader processes.

    Starting processes takes seconds where the parent is large or the machine has many cores, and an evaluation of two
    datasets after every epoch would do it twice.

    Args:
        datasets: `PairDataset`s.  args: parsed options: workers, timeout.  device: where batches go next.
    """

    def __init__(self, datasets, args, device):
        self.datasets, self._plan = list(datasets), _Plan()
        workers = distributed.loader_workers(args)
        if workers:
            _allow_open_files(workers)
            _check_temporary_folder()
        self.minutes = getattr(args, "timeout", 0)
        self._loader = DataLoader(
            _Joined(self.datasets),
            batch_sampler=self._plan,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            timeout=60 * self.minutes if workers else 0,
            worker_init_fn=ignore_in_loader,
            collate_fn=self.datasets[0].collate,
        )

    def batches(self, dataset, plan):
        """An iterator of a dataset's batches; a second one ends the first.

        Args:
            dataset: one of `datasets`.  plan: for each batch its indices.

        Raises (from the iterator):
            UserError: no batch has come for --timeout minutes.
        """
        number = next(i for i, own in enumerate(self.datasets) if own is dataset)
        self._plan.batches = [[(number, [int(index) for index in batch])] for batch in plan]
        try:
            iterator = iter(self._loader)
        except BaseException:  # some of the processes may have started; Python would wait for them at its end
            for process in active_children():
                process.kill()
            raise
        return self._watched(iterator, dataset)

    def try_out(self, batch_size, seconds):
        """Read this process's share of what `evaluated_views` show, for at most so long, to find damaged images early.

        Returns:
            (read, all): numbers of images.

        Raises:
            UserError: an image cannot be read.
        """
        done, total, end = 0, 0, time.monotonic() + seconds
        for dataset in (self.datasets[1], self.datasets[-1]):  # queries, once; gallery
            start, stop = distributed.shard(len(dataset))
            plan = [range(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]
            total += stop - start
            for _, indices in progress_bar(self.batches(dataset, plan), "reading evaluation images", len(plan)):
                done += len(indices)
                if time.monotonic() > end:
                    break
        return done, total

    def close(self):
        """End the loader processes. Python's own end would wait for them, and they for a signal that they ignore."""
        iterator, self._loader = getattr(self._loader, "_iterator", None), None
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def _watched(self, iterator, dataset):
        for batch in self._plan.batches:
            try:
                yield next(iterator)
            except RuntimeError as error:
                if "DataLoader timed out" not in str(error):
                    raise
                raise UserError(
                    f"no images have come from the loader processes for {self.minutes} minutes (--timeout); the next "
                    f"batch starts with {dataset.files_of(batch[0][1][0])[0]}: check that its disk answers"
                ) from error


def _allow_open_files(workers):
    """Raise this process's limit of open files as far as loader processes need it and it can be raised.

    Raises:
        UserError: it cannot, and is too low to start them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/dev/fd"))
    starting, working = opened + 5 * workers + 16, opened + 9 * workers + 64  # measured, and some more
    if soft < working and soft != resource.RLIM_INFINITY:
        soft = working if hard == resource.RLIM_INFINITY else min(working, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < starting:
            raise UserError(
                f"{soft} open files are too few for {workers} loader processes, which need {working}; use fewer "
                f"--workers, or allow more (ulimit -n 4096)"
            )


def _check_temporary_folder():
    """Raises UserError if sockets in the folder for temporary files would have too long a path.

    Loader processes send images through them; without one they would send nothing, and nobody would know.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        raise UserError(
            f"the folder for temporary files, {folder}, has too long a path for the sockets of loader processes; set "
            f"TMPDIR to one of at most {LONGEST_FOLDER} characters, or pass --workers 0"
        )


class _Plan:
    """The batches of the next iterator."""

    batches = ()

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


class _Joined(Dataset):
    """Batches of several datasets, each by its one key (number of the dataset, indices)."""

    def __init__(self, datasets):
        self.datasets = datasets

    def __getitems__(self, batch):
        ((number, indices),) = batch
        return self.datasets[number].samples(indices)
