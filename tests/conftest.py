import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' networks are too small to share among cores

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # make_data

import make_data

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """Small correct copies of the layouts: {"cvusa": path, "cvact": ..., "vigor": ..., "pairs": ...}."""
    base = tmp_path_factory.mktemp("data")
    return {name: make_data.WRITERS[name](base / name) for name in make_data.WRITERS}


@pytest.fixture(scope="session")
def city_roots(tmp_path_factory):
    """The three layouts as the procedural city writes them: {"cvusa": path, "cvact": ..., "vigor": ...}."""
    from dataset.city import write_city

    base = tmp_path_factory.mktemp("city")
    count = {"train": make_data.TRAIN, "test": make_data.TEST}
    return {
        "cvusa": write_city("cvusa", base / "cvusa", **count, jobs=2),
        "cvact": write_city("cvact", base / "cvact", **count, val=make_data.TEST, jobs=2),
        "vigor": write_city("vigor", base / "vigor", cities=4, panoramas=24, tiles=make_data.CITY_TILES, jobs=2),
    }
