"""The named layers of the suite, and the points that are measured on them. No torch.

To add a layer, add a line to SUITE: `_layer` takes one number for three equal axes. A layer that is wanted once needs
no line: `python -m fuzz bench CASE` measures a case string.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from convt3d.geometry import Geometry, Triple, check_geometry
from convt3d.plan import PRIMITIVES
from fuzz.case import Case, CaseError, format_case
from fuzz.plans import geometry as geometry_of_case

DIRECTIONS = PRIMITIVES
DTYPES = ("bf16", "f16", "tf32", "f32")  # f32: strict, without TF32
# Memory formats of all operands -> the token of a case string.
LAYOUTS = {"ncdhw": "ncdhw", "channels_last": "cl"}


@dataclass(frozen=True)
class Layer:
    """A transposed convolution with its batch and input size.

    Args:
        name: in tables and for --shapes.
        geometry: every size and parameter.
        bias: whether there is a bias, which grad_weight then has a gradient of.
    """

    name: str
    geometry: Geometry
    bias: bool


@dataclass(frozen=True)
class Point:
    """What one row measures.

    Args:
        layer: the layer.
        dtype: one of DTYPES.
        layout: one of LAYOUTS.
        direction: one of DIRECTIONS.
        plans: (direction, plan) of plans that a case string asks for.
    """

    layer: Layer
    dtype: str
    layout: str
    direction: str
    plans: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.layer.name} {self.dtype} {self.layout} {self.direction}"


def _layer(
    name: str,
    n: int,
    channels: tuple[int, int],
    input_size: int | Triple,
    kernel_size: int | Triple,
    stride: int | Triple = 1,
    padding: int | Triple = 0,
    output_padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> Layer:
    geometry = Geometry(
        batch=n,
        in_channels=channels[0],
        out_channels=channels[1],
        groups=groups,
        input_size=_triple(input_size),
        kernel_size=_triple(kernel_size),
        stride=_triple(stride),
        padding=_triple(padding),
        output_padding=_triple(output_padding),
        dilation=_triple(dilation),
    )
    check_geometry(geometry)
    return Layer(name, geometry, bias)


def _triple(value: int | Triple) -> Triple:
    return (value, value, value) if isinstance(value, int) else value


# Sources: kb58 to kb77 KernelBench level1, kb2_50 level2 (task 73 passes its groups=4 in another place, so that they
# are 1); nnunet MIC-DKFZ/dynamic-network-architectures unet_decoder.py; monai_unet and mednext Project-MONAI/MONAI
# unet.py and mednext_block.py; psmnet JiaRenChang/PSMNet stackhourglass.py; mvsnet xy-guo/MVSNet_pytorch
# CostRegNet.conv11 with 192 depths of 640x512; videogpt wilson1yan/VideoGPT SamePadConvTranspose3d.
SUITE = (
    _layer("kb58", 16, (32, 16), (16, 32, 64), (3, 5, 7)),
    _layer("kb61", 8, (48, 48), 64, 3),
    _layer("kb68", 16, (32, 64), 64, (3, 5, 5)),
    _layer("kb70", 8, (48, 24), 96, 3),
    _layer("kb72", 8, (32, 32), (12, 24, 48), (3, 5, 7), 2, (1, 2, 3), 1, groups=4),
    _layer("kb73", 4, (32, 32), (32, 64, 128), 3, 2, 1),
    _layer("kb77", 16, (32, 64), (16, 32, 32), 3, 2, 1, dilation=2),
    _layer("nnunet_top", 2, (64, 32), 64, 2, 2, bias=True),
    _layer("nnunet_bottleneck", 2, (320, 320), 4, 2, 2, bias=True),
    _layer("nnunet_aniso", 2, (64, 32), (20, 160, 128), (1, 2, 2), (1, 2, 2), bias=True),
    _layer("monai_unet_top", 4, (32, 2), 48, 3, 2, 1, 1, bias=True),
    _layer("psmnet_conv6", 4, (64, 32), (24, 48, 156), 3, 2, 1, 1),
    _layer("mvsnet_conv11", 2, (16, 8), (96, 64, 80), 3, 2, 1, 1),
    _layer("videogpt_up1", 8, (240, 240), (6, 34, 34), 4, 2, 3, bias=True),
    _layer("kb2_50_cin3", 128, (3, 16), (16, 32, 32), 3, 2, 1, bias=True),
    _layer("mednext_dw_k5", 2, (64, 64), 64, 5, 2, 2, groups=64, bias=True),
)
NAMES = tuple(layer.name for layer in SUITE)


def points_of(
    layers: Iterable[Layer],
    dtypes: Sequence[str],
    layouts: Sequence[str],
    directions: Sequence[str],
) -> list[Point]:
    """Returns a point for each combination; those that have the same exact result follow each other."""
    return [
        Point(layer, dtype, layout, direction)
        for layer in layers
        for dtype in dtypes
        for direction in directions
        for layout in layouts
    ]


def case_string(point: Point) -> str:
    """Returns the case string that measures the same point again, but for its direction."""
    geometry = point.layer.geometry
    plans = dict(point.plans)
    case = Case(
        dtype=point.dtype,
        n=geometry.batch,
        groups=geometry.groups,
        in_channels=geometry.in_channels,
        out_channels=geometry.out_channels,
        input_size=geometry.input_size,
        kernel_size=geometry.kernel_size,
        stride=geometry.stride,
        padding=geometry.padding,
        output_padding=geometry.output_padding,
        dilation=geometry.dilation,
        bias=point.layer.bias,
        layout=LAYOUTS[point.layout],
        lane="normal",
        forward_plan=plans.get("forward", "auto"),
        grad_input_plan=plans.get("grad_input", "auto"),
        grad_weight_plan=plans.get("grad_weight", "auto"),
    )
    return format_case(case)


def points_of_case(case: Case, directions: Sequence[str]) -> list[Point]:
    """Returns the points of a case; its lane, seed and mode do not matter.

    Raises:
        CaseError: a dtype or a layout that is not measured.
    """
    if case.dtype not in DTYPES:
        raise CaseError(f"dtype={case.dtype!r}, but bench measures {', '.join(DTYPES)}")
    layouts = {token: layout for layout, token in LAYOUTS.items()}
    if case.layout not in layouts:
        raise CaseError(f"layout={case.layout!r}, but bench measures {', '.join(layouts)}")
    named = {direction: getattr(case, f"{direction}_plan") for direction in DIRECTIONS}
    plans = tuple((direction, name) for direction, name in named.items() if name != "auto")
    layer = Layer("case", geometry_of_case(case), case.bias)
    return [
        Point(layer, case.dtype, layouts[case.layout], direction, plans) for direction in directions
    ]
