"""Checkpoint files: whole training states, written atomically; weights of this project and of the published release."""

import operator
import pickle
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from utils.options import UserError, scarcity
from utils.run_files import RunFiles, whole_file
from utils.stopping import ctrl_c_waits

WHOLE = {"epoch", "state_dict", "best_acc1", "optimizer", "sampler"}  # what --resume requires
ONLY_TO_RESUME = ("optimizer", "sampler", "criterion", "online", "average_steps", "line", "lists", "inside")
# The release names its ConvNeXt's parts as Facebook's code does: pattern -> the name in timm.
RELEASED_NAMES = (
    (r"^(\w+_net)\.downsample_layers\.0\.", r"\1.backbone.net.stem."),
    (r"^(\w+_net)\.downsample_layers\.(\d+)\.", r"\1.backbone.net.stages.\2.downsample."),
    (r"^(\w+_net)\.stages\.(\d+)\.(\d+)\.", r"\1.backbone.net.stages.\2.blocks.\3."),
    (r"^(\w+_net)\.norm\.", r"\1.backbone.norm."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
)


def save_checkpoint(path, before=None, **state):
    """Write a training state (`epoch`, `state_dict`, `optimizer`, ...); until it is complete, the previous file stays.

    Args:
        before: path under which the previous file is kept after that; None to replace it.

    Raises:
        UserError: the file cannot be written.
    """
    with ctrl_c_waits(), whole_file(path, flush=True, before=before) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # PyTorch's words where a full disk has cut its file short
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load_checkpoint(path, verified=False):
    """The dict of a checkpoint file, its tensors mapped from the file; only tensors and plain values are unpickled.

    Args:
        verified: the file's checksums have been compared before.

    Raises:
        UserError: no such file, a damaged one, or one that holds code.
    """
    path = Path(path)
    try:
        if not path.is_file():
            wrong = "is not a file" if path.exists() else "does not exist"
            raise UserError(f"{path} {wrong}; expected a checkpoint such as checkpoint.pth.tar")
        zipped = zipfile.is_zipfile(path)  # so are all but those of PyTorch 1.5 and earlier
        if zipped and not verified:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise UserError(f"{path} is damaged: its part {damaged} fails its checksum; copy it again")
        with _numpy_scalars_allowed():
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds Python objects, which could run code and "
            "are not loaded; copy it again, or save its state_dict alone"
        ) from error
    except Exception as error:  # whatever PyTorch's reader meets in a damaged file
        if scarcity(error):  # not the file's fault
            raise
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:200]
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is damaged, or none ({reason}); copy or download it again"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}; expected a checkpoint with a state_dict")
    return state


def latest_checkpoint(path):
    """(path, sentences for the log) of a checkpoint, or of the one before it if this one is damaged or missing.

    Raises:
        UserError: there is none, or both are damaged.
    """
    files = RunFiles(path.parent)
    try:
        load_checkpoint(path)
    except UserError as error:
        if path.name != files.checkpoint.name or not files.before.is_file():
            raise
        load_checkpoint(files.before)
        return files.before, [f"{error.sentence()}; continuing from the checkpoint before it, {files.before}"]
    return path, []


def load_weights(model, path, name="the checkpoint"):
    """Load a model's weights, strictly, from a file of this project or of the published release.

    Args:
        model: `model.FRGeo`.  path: checkpoint file, or its already loaded dict, which messages call `name`.

    Returns:
        dict: what else the file holds (epoch, best_acc1, args, ...), without weights and optimiser.

    Raises:
        UserError: the file is missing or damaged, or a weight is missing, unexpected or has another shape.
    """
    state, name = (path, name) if isinstance(path, dict) else (load_checkpoint(path), path)
    weights = state.get("state_dict", state)
    weights = weights if isinstance(weights, dict) else {}
    weights = {_own_name(str(key)): value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    if not weights:
        raise UserError(f"{name} holds no weights; expected a checkpoint with a state_dict")
    if misfits := describe_misfits(weights, model.state_dict()):
        options = {k: v for k, v in stored_args(state).items() if k in ("arch", "pool", "regions", "share") and v}
        trained = f" ({', '.join(f'{k} {v}' for k, v in options.items())})" if options else ""
        raise UserError(
            f"{name} does not fit this model: {misfits}; pass the --arch, --pool and --share that it was trained "
            f"with{trained}"
        )
    for key, value in weights.items():
        if value.layout != torch.strided or value.is_meta or value.is_complex():
            raise UserError(f"{name} holds weights without values that a network can use ({key}); save them again")
    own = model.state_dict()
    for key in [key for key in own if key.startswith("query_net.")]:
        other = key.replace("query_net.", "reference_net.", 1)
        if own[key].data_ptr() == own[other].data_ptr() and not torch.equal(weights[key], weights[other]):
            raise UserError(f"{name} holds two encoders with weights of their own ({key} differs); omit --share")
    model.load_state_dict(weights)
    return {k: v for k, v in state.items() if k not in ("state_dict", *ONLY_TO_RESUME)} if "state_dict" in state else {}


def describe_misfits(weights, own):
    """Which weights of a state dict are missing, unexpected or have another shape, as text; "" if it fits `own`."""
    both = sorted(own.keys() & weights.keys())
    shapes = [(k, tuple(weights[k].shape), tuple(own[k].shape)) for k in both]
    shapes = [f"{k} {found} instead of {wanted}" for k, found, wanted in shapes if found != wanted]
    found = {"missing": sorted(own.keys() - weights.keys()), "unexpected": sorted(weights.keys() - own.keys())}
    parts = []
    for kind, keys in (found | {"other shape": shapes}).items():
        more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
        parts += [f"{kind} {', '.join(keys[:4])}{more}"] if keys else []
    return "; ".join(parts)


def stored_args(state):
    """{option: value} of the run that wrote a checkpoint; {} for the release's, which stores none."""
    args = state.get("args")
    return args if isinstance(args, dict) else {}


def stored_epoch(state):
    """Epochs that a checkpoint was trained for; None if unknown."""
    try:
        return operator.index(state.get("epoch"))
    except (TypeError, ValueError):
        return None


def _own_name(key):
    key = key.removeprefix("module.")
    released = re.match(r"\w+_net\.(downsample_layers|stages|norm)\.", key)
    for pattern, name in RELEASED_NAMES if released else ():
        key = re.sub(pattern, name, key)
    return key


@contextmanager
def _numpy_scalars_allowed():
    """The release stores its best R@1 as a NumPy scalar: a plain number, though not of a type that torch allows."""
    import _codecs

    scalar = np.float64(0).__reduce__()[0]
    allowed = [(scalar, f"{module}.scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")]
    allowed += [np.dtype, *{type(np.dtype(t)) for t in ("f8", "f4", "i8", "i4")}, (_codecs.encode, "_codecs.encode")]
    with torch.serialization.safe_globals(allowed):
        yield
