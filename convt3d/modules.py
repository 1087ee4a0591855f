"""The op as modules: a drop-in for torch.nn.ConvTranspose3d, and `ModelNew`, which holds one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convt3d.functional import conv_transpose3d


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d whose forward and backward run on convt3d's kernels.

    Constructor, parameters, initialisation and state_dict are those of torch.nn.ConvTranspose3d.
    """

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:  # type: ignore[override]
        """Returns the transposed convolution of input.

        Args:
            input: (N, C_in, D, H, W) or (C_in, D, H, W).
            output_size: (D, H, W) wanted of the output, with or without N and C_out before it; it decides
                output_padding. None takes the module's own output_padding.

        Returns:
            (N, C_out, D, H, W), or without N.

        Raises:
            ValueError: no output_padding gives output_size, or padding_mode is not "zeros".
            RuntimeError, TypeError: as for convt3d.conv_transpose3d.
        """
        if isinstance(input, torch.fx.Proxy) and (path := input.tracer.path_of_module(self)):
            # A node of the graph, as native is: output_size has no value yet that could be looked at.
            return input.tracer.create_proxy("call_module", path, (input, output_size), {})  # type: ignore[return-value]
        if self.padding_mode != "zeros":
            raise ValueError(f"padding_mode={self.padding_mode!r}, but must be 'zeros'")
        output_padding = self._output_padding(
            input,
            output_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            3,
            self.dilation,  # type: ignore[arg-type]
        )
        return conv_transpose3d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
        )


class ModelNew(torch.nn.Module):
    """A model of one transposed convolution.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size, stride, padding, output_padding, dilation: one int, or three for D, H, W.
        groups: divides C_in and C_out.
        bias: whether to add a learned bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        output_padding: int | tuple[int, int, int] = 0,
        dilation: int | tuple[int, int, int] = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv_transpose3d = ConvTranspose3d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            bias=bias,
            dilation=dilation,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output (N, C_out, oD, oH, oW) of x (N, C_in, D, H, W), or both without N."""
        return self.conv_transpose3d(x)
