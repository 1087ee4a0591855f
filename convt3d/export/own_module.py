"""ConvTranspose3d on torch.nn.Module alone: the exported file must not hand its work to torch.nn.ConvTranspose3d."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convt3d.functional import conv_transpose3d
from convt3d.geometry import integer, triple


class ConvTranspose3d(torch.nn.Module):
    """A transposed convolution with the parameters, the state_dict and the initialisation of PyTorch's.

    It has neither output_size in forward nor the arguments padding_mode, device and dtype: use `.to`.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size, stride, padding, output_padding, dilation: one int, or three for D, H, W.
        groups: divides C_in and C_out.
        bias: whether to add a learned bias.

    Raises:
        ValueError: groups is below 1, or does not divide the channels.
        TypeError: a parameter is not made of integers.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        output_padding: int | tuple[int, int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int, int] = 1,
    ) -> None:
        super().__init__()
        groups = integer("groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or integer(name, channels) % groups:
                raise ValueError(f"{name}={channels} is not divisible by groups={groups}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = triple("kernel_size", kernel_size)
        self.stride = triple("stride", stride)
        self.padding = triple("padding", padding)
        self.output_padding = triple("output_padding", output_padding)
        self.groups = groups
        self.dilation = triple("dilation", dilation)
        shape = (in_channels, out_channels // groups, *self.kernel_size)
        self.weight = torch.nn.Parameter(torch.empty(shape))
        self.bias = torch.nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew: the numbers that PyTorch's own module draws from the same seed."""
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        fan_in = math.prod(self.weight.shape[1:])
        if self.bias is not None and fan_in:
            bound = 1 / math.sqrt(fan_in)
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """Returns what stands between the parentheses of the module's repr."""
        words = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        words += [f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}"]
        words += [f"output_padding={self.output_padding}, groups={self.groups}"]
        return ", ".join([*words, f"bias={self.bias is not None}"])

    def forward(self, input: Tensor) -> Tensor:
        """Returns the output (N, C_out, oD, oH, oW) of input (N, C_in, D, H, W), or both without N."""
        return conv_transpose3d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )
