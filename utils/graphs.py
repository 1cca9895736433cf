"""CUDA graphs: some thousand kernels launched as one."""

import torch

from utils.options import UserError

WARM_UP = 3  # calls before the recording: libraries choose and load their kernels in the first


class Recorded:
    """A function of tensors whose kernels are recorded once, at the first call, and then replayed together.

    A step of a small batch is bound by the launches of its kernels; a replay is one launch. Tensors of other shapes
    than the first call's are given to the function itself.

    Args:
        function: (tensors on one GPU) -> tuple of tensors. It must not synchronise with the GPU, nor depend on anything
            in Python that changes. It may set the gradients of `parameters`.
        parameters: whose gradients it sets; before a call they hold none.
        state: tensors that it changes in place, such as running statistics: the calls before the recording leave them
            as they are.

    Raises:
        UserError: PyTorch cannot record the function.
    """

    def __init__(self, function, parameters=(), state=()):
        self.function, self.parameters, self.state = function, list(parameters), list(state)
        self.graph = None

    def __call__(self, *inputs):
        if self.graph is None:
            self._record(inputs)
        if any(own.shape != new.shape for own, new in zip(self.inputs, inputs, strict=True)):
            return self.function(*inputs)
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return tuple(output.clone() for output in self.outputs)  # the next replay writes over them

    def _record(self, inputs):
        self.inputs = [x.clone(memory_format=torch.preserve_format) for x in inputs]
        state, random = [x.clone() for x in self.state], torch.cuda.get_rng_state()
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.function(*self.inputs)
                self._clear_gradients()
        torch.cuda.current_stream().wait_stream(stream)
        try:
            # Other threads, such as the one that pins the loader's batches, may allocate memory meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.outputs = self.function(*self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"the step cannot be recorded as a CUDA graph ({first}); omit --fast-gpu") from error
        self.graph, self.gradients = graph, [parameter.grad for parameter in self.parameters]
        self._clear_gradients()
        for own, before in zip(self.state, state, strict=True):
            own.copy_(before)
        torch.cuda.set_rng_state(random)

    def _clear_gradients(self):
        for parameter in self.parameters:
            parameter.grad = None
