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


@pytest.fixture
def refused(capsys):
    """refused(main, *arguments): the error of a command that ends with code 2, one line and no traceback.

    The tree of files that was expected may follow where --data-root is wrong.
    """

    def refusal(main, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        error = capsys.readouterr().err.strip()
        first, *tree = error.splitlines()
        assert stop.value.code == 2 and "Traceback" not in error
        assert not tree or first.endswith(("; expected:", "; pass the folder that holds:"))
        return error

    return refusal
