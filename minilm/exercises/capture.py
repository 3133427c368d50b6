"""What a CUDA graph does with tensor operations, on the CPU: record once, replay often.

    graph = Recorder()
    with graph.capture():
        y = x * rate          # recorded, not done
    x.copy_(batch)
    graph.replay()            # done now, on the same x, into the same y

As in CUDA, the operations are recorded with the tensors that they work on and with the *values* of
Python numbers; whatever Python does between them leaves no trace. Reading a number back (`.item()`,
`if tensor`) is an error while operations are recorded.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

READS_BACK = ("_local_scalar_dense", "is_nonzero", "equal")


class Recorder:
    """`capture()` records the operations inside, `replay()` does them; both are counted."""

    def __init__(self):
        self.operations: list[tuple] = []  # function, arguments, the tensors of its result
        self.captures = self.replays = 0

    @contextlib.contextmanager
    def capture(self):
        """Record what happens inside; tensors from outside are left as they were."""
        self.operations, self.captures = [], self.captures + 1
        mode = _Recording(self.operations)
        try:
            with torch.no_grad(), mode:
                yield self
        finally:
            for tensor, before in mode.before:
                tensor.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """Do what was recorded, once, in the same tensors."""
        if not self.captures:
            raise RuntimeError("replay: nothing has been captured yet")
        self.replays += 1
        for function, args, kwargs, results in self.operations:
            found = tree_flatten(function(*args, **kwargs))[0]
            for tensor, new in zip(results, found, strict=True):
                if isinstance(tensor, torch.Tensor) and tensor.data_ptr() != new.data_ptr():
                    tensor.copy_(new)


class _Recording(TorchDispatchMode):
    """Notes each operation; keeps what tensors held before it, to be put back at the end."""

    def __init__(self, operations: list):
        super().__init__()
        self.operations = operations
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch asks; True would load its compiler with the first operation, for two seconds."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in READS_BACK:
            raise RuntimeError("a number cannot be read back while operations are recorded")
        for place, argument in zip(func._schema.arguments, args, strict=False):
            if place.alias_info is not None and place.alias_info.is_write:
                self.before.insert(0, (argument, argument.clone()))
        results = func(*args, **kwargs)
        kept = tree_map(lambda x: x, (args, kwargs))  # lists as they are now
        self.operations.append((func, *kept, tree_flatten(results)[0]))
        return results
