"""A GPU that is not there: tensors in the processor's memory that say "cuda:0" and refuse what a GPU's would.

What it shows is that a run keeps its tensors on one device: an operation on tensors of both raises, as do NumPy's
views of the GPU's and collectives that gloo offers for the CPU only. It computes what the CPU does and tells nothing
of streams, kernels or speed.
"""

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.data import DataLoader

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}  # indices may lie on the CPU
GLOO = {torch.ops.c10d.allreduce_.default, torch.ops.c10d.broadcast_.default}  # it offers these two on a GPU
CUDA = {  # what the project and PyTorch's optimisers ask of torch.cuda
    "is_available": True, "device_count": 1, "current_device": 0, "set_device": None, "get_device_name": "simulated",
    "get_device_capability": (9, 0), "is_current_stream_capturing": False, "_lazy_init": None,
}  # fmt: skip


class OnGPU(torch.Tensor):
    """A tensor `elem` of the CPU that stands for one on the GPU; to PyTorch's C++, which has no GPU, a meta tensor."""

    @staticmethod
    def __new__(cls, elem):
        layout = elem.size(), elem.stride(), elem.storage_offset()
        tensor = torch.Tensor._make_wrapper_subclass(cls, *layout, dtype=elem.dtype, device="meta")
        tensor.elem = elem.detach()
        return tensor

    device, is_cuda, is_meta = property(lambda self: GPU), True, False

    def __repr__(self):
        return f"OnGPU({self.elem})"

    def __reduce_ex__(self, protocol):  # saved: read by `map_location="cpu"`
        return self.elem.__reduce_ex__(protocol)

    def tolist(self):
        return self.elem.tolist()

    def new_tensor(self, data):
        return torch.tensor(data, dtype=self.dtype).to(GPU)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        flat, form = tree_flatten((args, kwargs or {}))
        there = [x for x in flat if isinstance(x, OnGPU)]
        here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, OnGPU)]
        mixed = any(x.dim() for x in here)
        if function in INDEXED:
            mixed = not isinstance(args[0], OnGPU) or any(x is args[2] for x in here if len(args) > 2 and x.dim())
        if there and mixed and function is not aten.copy_.default:
            raise RuntimeError(f"Expected all tensors to be on the same device, in {function}")
        if there and function.namespace == "c10d" and function not in GLOO:
            raise RuntimeError(f"gloo does not offer {function} for tensors on a GPU")
        args, kwargs = tree_unflatten([x.elem if isinstance(x, OnGPU) else x for x in flat], form)
        wanted, known = bool(there), {id(x.elem): x for x in there} | {id(x): x for x in here}  # changed in place
        if kwargs.get("device") is not None:
            wanted, kwargs["device"] = kwargs["device"].type != "cpu", "cpu"

        def placed(x):
            return known[id(x)] if id(x) in known else OnGPU(x) if wanted and isinstance(x, torch.Tensor) else x

        return tree_map(placed, function(*args, **kwargs))


class Simulation(TorchDispatchMode):
    """Passes on every operation, those that make a tensor on a GPU among them."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        parts = NotImplemented
        if torch.is_inference_mode_enabled():  # else autograd has taken it apart
            with self:
                parts = function.decompose(*args, **kwargs or {})
        return OnGPU.__torch_dispatch__(function, types, args, kwargs) if parts is NotImplemented else parts


@contextmanager
def simulated_gpu():
    """While it lasts, this machine has one GPU."""
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
        stack.enter_context(Simulation())
        yield
