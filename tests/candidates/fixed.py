"""As kernels that were written for one layer are: no argument is free but the channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convt3d import conv_transpose3d


class Fixed(nn.Module):
    """Kernel size 3, stride 2, padding 1, output padding 1, all given as one int."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int,
        output_padding: int,
    ) -> None:
        super().__init__()
        if (kernel_size, stride, padding, output_padding) != (3, 2, 1, 1):
            raise ValueError("must be (kernel_size=3, stride=2, padding=1, output_padding=1)")
        self.layer = nn.ConvTranspose3d(in_channels, out_channels, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.profiler.record_function("fixed"):
            return conv_transpose3d(x, self.layer.weight, None, 2, 1, 1)
