"""The op as PyTorch's dispatcher knows it: `torch.ops.convt3d.forward`, `grad_input` and `grad_weight`.

    primitives.py   schemas, checks of operands, and the kernels for CPU, CUDA and meta tensors
    autograd.py     derivatives, in reverse and in forward mode
    batching.py     torch.vmap
    autocast.py     torch.autocast
    flops.py        torch.utils.flop_counter
    guards.py       context managers for what the dispatcher leaves out

Importing any of them registers all: an operator without its derivatives would give gradients of zero.
"""

from convt3d.ops import autocast, autograd, batching, flops
from convt3d.ops.primitives import OPERATORS

__all__ = ["OPERATORS", "autocast", "autograd", "batching", "flops"]
