"""Seeing inside a model: what every layer computed, and what every gradient was.

    with record(model) as r:
        model.loss(ids).backward()
    r.attention[2]                    # (B, H, T, T) of layer 2
    r.activations["blocks.0.mlp"]     # (B, T, C)
    r.gradients["blocks.0.mlp.up.weight"]

While it records, attention takes the textbook path with the (T, T) matrices in the open; its
results differ from those of the fused path by rounding only.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from .attention import MultiHeadAttention
from .model import MiniLM


class Recording:
    """What the last forward pass left behind, and its gradients after a backward pass.

    Names of activations, i being the layer:

        embedding                        (B, T, C)     what enters block 0
        blocks.i                         (B, T, C)     the residual stream after block i
        blocks.i.attention, blocks.i.mlp (B, T, C)     what the two halves of block i add to it
        blocks.i.attention.q, .k, .v     (B, H, T, D)  after norm and rotation; with grouped
                                         queries, the keys and values as each query head sees them
        blocks.i.attention.scores        (B, H, T, T)  scaled, −inf where a key may not be seen
        blocks.i.attention.weights       (B, H, T, T)  softmax of the scores, before dropout
        blocks.i.attention.out           (B, H, T, D)  of each head, before W_O
        final_norm                       (B, T, C)     what the output matrix multiplies

    With a key/value cache, k, v and the columns of scores and weights are all positions so far.
    """

    def __init__(self, model: MiniLM):
        self._model = model
        self._tensors: dict[str, Tensor] = {}  # of the graph, so that backward can fill .grad

    def _keep(self, name: str, value: Tensor) -> None:
        if value.requires_grad:
            value.retain_grad()
        self._tensors[name] = value

    def _layers(self, name: str) -> list[Tensor]:
        names = [f"blocks.{i}.attention.{name}" for i in range(len(self._model.blocks))]
        return [self._tensors[n].detach() for n in names if n in self._tensors]

    @property
    def activations(self) -> dict[str, Tensor]:
        """Name → tensor, without its graph."""
        return {name: value.detach() for name, value in self._tensors.items()}

    @property
    def attention(self) -> list[Tensor]:
        """The attention weights of each layer, (B, H, T, T)."""
        return self._layers("weights")

    @property
    def scores(self) -> list[Tensor]:
        """The scores of each layer before the softmax, (B, H, T, T)."""
        return self._layers("scores")

    @property
    def heads(self) -> list[Tensor]:
        """The output of each head of each layer, (B, H, T, D)."""
        return self._layers("out")

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Parameter name → its .grad as it stands now; read it before it is set to zero."""
        named = self._model.named_parameters()
        return {name: p.grad for name, p in named if p.grad is not None}

    @property
    def activation_gradients(self) -> dict[str, Tensor]:
        """Name of an activation → the gradient of the loss with respect to it, after backward.

        Of k and v with grouped queries: the part that came through each query head.
        """
        tensors = self._tensors.items()
        return {name: value.grad for name, value in tensors if value.grad is not None}


@contextmanager
def record(model: MiniLM) -> Iterator[Recording]:
    """Record what `model` computes inside the `with` block; see `Recording`.

    Of several forward passes the last one stays. The backward pass may come inside the block or
    after it. At the end of the block, also after an error, the model is as it was.
    """
    recording = Recording(model)
    with ExitStack() as undo:

        def after(module: nn.Module, name: str) -> None:
            def keep(module, args, output):
                recording._keep(name, output)

            undo.callback(module.register_forward_hook(keep).remove)

        def keep_embedding(module, args):
            recording._keep("embedding", args[0])

        first = model.blocks[0].register_forward_pre_hook(keep_embedding)
        undo.callback(first.remove)
        for i, block in enumerate(model.blocks):
            after(block, f"blocks.{i}")
            after(block.attention, f"blocks.{i}.attention")
            after(block.mlp, f"blocks.{i}.mlp")
            undo.callback(setattr, block.attention, "watch", block.attention.watch)
            block.attention.watch = _watcher(recording, i, block.attention)
        after(model.final_norm, "final_norm")
        yield recording


def _watcher(recording: Recording, layer: int, attention: MultiHeadAttention) -> Callable:
    earlier = attention.watch  # a recording around this one goes on

    def watch(**tensors: Tensor) -> None:
        if earlier is not None:
            earlier(**tensors)
        for name, value in tensors.items():
            recording._keep(f"blocks.{layer}.attention.{name}", value)

    return watch
