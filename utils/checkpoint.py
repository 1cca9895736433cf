"""Checkpoint files: whole training states, written atomically; weights of this project and of the published release."""

import operator
import os
import pickle
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError
from utils.options import stored_args
from utils.writing import whole_file

MODEL_OPTIONS = ("dataset", "arch", "pool", "regions", "share", "ground_size", "aerial_size")
ONLY_TO_RESUME = ("optimizer", "sampler", "criterion", "online", "average_steps")
ENCODERS = ("query_net", "reference_net")


def save_checkpoint(path, **state):
    """Write a training state (`epoch`, `state_dict`, `optimizer`, ...) to `path` so that no kill can lose it.

    The file is written under another name, flushed to disk, and renamed over the old one.
    """
    path = Path(path)
    with whole_file(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # PyTorch's words where a full disk has cut its file short
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself reaches the disk
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path):
    """The dict of a checkpoint file, on the CPU; nothing but tensors and plain values is unpickled.

    Raises:
        UserError: no such file, a damaged one, or one that holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there; expected a checkpoint such as checkpoint.pth.tar or model_best.pth.tar")
    try:
        with _numpy_scalars_allowed():
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds Python objects, which could run code and "
            "are not loaded; copy it again, or save its state_dict alone"
        ) from error
    except Exception as error:  # the zip and pickle readers raise many kinds
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}); copy or download it again") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}; expected a checkpoint with a state_dict")
    return state


def load_weights(model, path):
    """Load a model's weights, strictly, from a file of this project or of the published release.

    Args:
        model: `model.FRGeo`.  path: checkpoint file, or its already loaded dict.

    Returns:
        dict: what else the file holds (epoch, best_acc1, args, ...), without weights and optimiser.

    Raises:
        UserError: the file is missing or damaged, or a weight is missing, unexpected or of another shape.
    """
    state = path if isinstance(path, dict) else load_checkpoint(path)
    name = "the checkpoint" if isinstance(path, dict) else str(path)
    weights = state.get("state_dict", state)
    weights = weights if isinstance(weights, dict) else {}
    weights = {
        str(key).removeprefix("module."): value for key, value in weights.items() if isinstance(value, torch.Tensor)
    }
    if not weights:
        raise UserError(f"{name} holds no weights; expected a checkpoint with a state_dict")
    if any(".downsample_layers." in key for key in weights):
        weights = _from_release(weights, model, name)
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    misshapen = [
        f"{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}"
        for key in sorted(own.keys() & weights.keys())
        if own[key].shape != weights[key].shape
    ]
    if missing or unexpected or misshapen:
        raise UserError(
            f"{name} does not fit this model: missing {_some(missing)}; unexpected {_some(unexpected)}; other shape "
            f"{_some(misshapen)}; give the --arch, --pool and --share that it was trained with{_trained_with(state)}"
        )
    model.load_state_dict(weights)
    if "state_dict" not in state:
        return {}
    return {k: v for k, v in state.items() if k not in ("state_dict", *ONLY_TO_RESUME)}


def model_options(path):
    """{option: value} of the model that a checkpoint of this project was trained with; {} for the release's."""
    state = path if isinstance(path, dict) else load_checkpoint(path)
    args = stored_args(state)
    return {k: args[k] for k in MODEL_OPTIONS if k in args}


def stored_epoch(state):
    """Epochs that a checkpoint was trained for; None where it does not tell."""
    try:
        return operator.index(state.get("epoch"))
    except (TypeError, ValueError):
        return None


def _from_release(weights, model, name):
    """The published key style (Facebook's ConvNeXt, per encoder) in this project's keys."""
    from timm.models.convnext import checkpoint_filter_fn

    out = {}
    for encoder in ENCODERS:
        part = {k.removeprefix(encoder + "."): v for k, v in weights.items() if k.startswith(encoder + ".")}
        net = getattr(model, encoder).backbone.net
        try:
            part = checkpoint_filter_fn(part, net)
        except KeyError as error:
            raise UserError(f"{name} holds {error}, which this --arch lacks; released files are ConvNeXt-T") from None
        for key, value in part.items():
            key = re.sub(r"^head\.norm\.", "norm.", key)
            prefix = f"{encoder}.backbone." + ("" if key.startswith("norm.") else "net.")
            out[prefix + key] = value
    rest = {k: v for k, v in weights.items() if not k.startswith(tuple(e + "." for e in ENCODERS))}
    return out | rest


@contextmanager
def _numpy_scalars_allowed():
    """The release stores its best R@1 as a NumPy scalar: plain numbers, though not torch's."""
    import _codecs

    scalar = np.float64(0).__reduce__()[0]
    allowed = [(scalar, f"{module}.scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")]
    allowed += [
        np.dtype,
        *{type(np.dtype(t)) for t in ("f8", "f4", "i8", "i4")},
        (_codecs.encode, "_codecs.encode"),
    ]
    with torch.serialization.safe_globals(allowed):
        yield


def _trained_with(state):
    options = model_options(state)
    return " (" + ", ".join(f"{k} {v}" for k, v in options.items() if v is not None) + ")" if options else ""


def _some(keys, most=4):
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more if keys else "none"
