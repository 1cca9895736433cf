"""A GPU that is not there: tensors in the processor's memory that say "cuda:0" and refuse what a GPU's would.

What it shows is that a run keeps its tensors on one device: an operation on tensors of both raises, as do NumPy's
views of the GPU's. It computes what the CPU does and tells nothing of streams, kernels or speed.
"""

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.data import DataLoader

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}  # indices may lie on the CPU
CUDA = {  # what the project and PyTorch's optimisers ask of torch.cuda
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "set_device": None,
    "get_device_name": "simulated",
    "get_device_capability": (9, 0),
    "is_current_stream_capturing": False,
}


def is_gpu(device):
    return device is not None and not isinstance(device, bool) and torch.device(device).type == "cuda"


class OnGPU(torch.Tensor):
    """A tensor `elem` of the CPU that stands for one on the GPU."""

    @staticmethod
    def __new__(cls, elem):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, elem.size(), elem.stride(), elem.storage_offset(), dtype=elem.dtype, requires_grad=elem.requires_grad
        )
        tensor.elem = elem.detach()
        return tensor

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)

    def __repr__(self):
        return f"OnGPU({self.elem})"

    def __reduce_ex__(self, protocol):  # saved: read by `map_location="cpu"`
        return self.elem.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        flat, form = tree_flatten((args, kwargs or {}))
        there = [x for x in flat if isinstance(x, OnGPU)]
        here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, OnGPU)]
        mixed = any(x.dim() for x in here) and there
        if function in INDEXED:
            mixed = not isinstance(args[0], OnGPU) or any(x is args[2] for x in here if len(args) > 2 and x.dim())
        if mixed and function is not aten.copy_.default:
            raise RuntimeError(f"Expected all tensors to be on the same device, in {function}")
        args, kwargs = tree_unflatten([x.elem if isinstance(x, OnGPU) else x for x in flat], form)
        if "device" in kwargs:
            kwargs["device"] = CPU
        known = {id(x.elem): x for x in there} | {id(x): x for x in here}  # changed in place

        def placed(x):
            return known[id(x)] if id(x) in known else OnGPU(x) if isinstance(x, torch.Tensor) else x

        return tree_map(placed, function(*args, **kwargs))


class ToGPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return OnGPU(x.detach().clone())

    @staticmethod
    def backward(ctx, grad):
        return grad.elem


class ToCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.elem.clone()

    @staticmethod
    def backward(ctx, grad):
        return OnGPU(grad)


class _Devices(TorchFunctionMode):
    """What names a device is caught before PyTorch looks for it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
        gpu = bool(args) and isinstance(args[0], OnGPU)
        if name == "to" and len(args) > 1 and isinstance(args[1], str | torch.device):
            kwargs |= dict(zip(("device", "dtype", "non_blocking"), args[1:], strict=False))
            args = args[:1]
        if gpu and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if gpu and name == "tolist":
            return args[0].elem.tolist()
        if gpu and name == "new_tensor":
            return OnGPU(torch.tensor(args[1], dtype=args[0].dtype))
        if gpu and name == "cpu":
            return ToCPU.apply(args[0])
        if kwargs.get("device") is None:
            return function(*args, **kwargs)
        wanted = is_gpu(kwargs.pop("device"))
        if name == "to":
            moved = args[0] if wanted == gpu else (ToGPU if wanted else ToCPU).apply(args[0])
            kwargs = {key: value for key, value in kwargs.items() if value is not None}
            return function(moved, **kwargs) if kwargs else moved
        out = function(*args, device=CPU, **kwargs)
        return OnGPU(out) if wanted and type(out) is torch.Tensor else out


@contextmanager
def simulated_gpu():
    """While it lasts, this machine has one GPU; models go to it by `.to`, tensors also as they are made."""
    plain = DataLoader.__init__

    def unpinned(self, *args, **kwargs):
        plain(self, *args, **kwargs | {"pin_memory": False})

    with ExitStack() as stack:
        for name, value in CUDA.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, value=value: value))
        for check in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
            if hasattr(torch.optim.Optimizer, check):  # by version
                stack.enter_context(mock.patch.object(torch.optim.Optimizer, check, lambda self: None))
        stack.enter_context(mock.patch.object(DataLoader, "__init__", unpinned))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        stack.enter_context(_Devices())
        yield
