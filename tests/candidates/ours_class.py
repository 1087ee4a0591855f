"""This project's op behind a constructor that takes its arguments in an order of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convt3d import conv_transpose3d

Size = int | tuple[int, int, int]


class Upsampling(nn.Module):
    """A transposed convolution; dilation first, channels last."""

    def __init__(
        self,
        dilation: Size,
        groups: int,
        stride: Size,
        bias: bool,
        kernel_size: Size,
        out_channels: int,
        in_channels: int,
        output_padding: Size = 0,
        padding: Size = 0,
    ) -> None:
        super().__init__()
        kernel = (kernel_size,) * 3 if isinstance(kernel_size, int) else kernel_size
        self.filters = nn.Parameter(torch.randn(in_channels, out_channels // groups, *kernel))
        self.offset = nn.Parameter(torch.randn(out_channels)) if bias else None
        self._parameters_of_the_op = stride, padding, output_padding, groups, dilation

    def forward(self, x: Tensor) -> Tensor:
        return conv_transpose3d(x, self.filters, self.offset, *self._parameters_of_the_op)
