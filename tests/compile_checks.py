"""What tracing, compiling and exporting must give on convt3d, on any device."""

from __future__ import annotations

import importlib.util
import io
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import convt3d
from convt3d import launch, plan
from convt3d.geometry import Geometry
from tests import operator_checks as checks
from tests.feature_calls import (
    GEOMETRY,
    LEAVES,
    PARAMETERS,
    TORCH,
    layers,
    leaves,
    ours,
    outcome,
    reals,
)
from tests.operator_checks import MEMORY_FORMATS, Operands
from tests.transform_checks import wrong_call

Signature = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]

needs_compile = pytest.mark.skipif(
    TORCH < (2, 1) and sys.version_info >= (3, 11),
    reason=f"torch.compile of torch {torch.__version__} does not run on Python 3.11",
)
needs_compiled_autograd = pytest.mark.skipif(
    TORCH < (2, 6), reason=f"compiled autograd of torch {torch.__version__} has another interface"
)
needs_unbacked_sizes = pytest.mark.skipif(
    TORCH < (2, 2), reason=f"torch {torch.__version__} compiles no sizes that depend on values"
)
needs_export = pytest.mark.skipif(
    not importlib.util.find_spec("torch.export"),
    reason=f"torch {torch.__version__} has no torch.export",
)
needs_opcheck = pytest.mark.skipif(
    not hasattr(torch.library, "opcheck"),
    reason=f"torch {torch.__version__} has no torch.library.opcheck",
)
needs_flop_counter = pytest.mark.skipif(
    not importlib.util.find_spec("torch.utils.flop_counter"),
    reason=f"torch {torch.__version__} has no torch.utils.flop_counter",
)
_SYMBOLIC = pytest.mark.skipif(
    TORCH < (2, 1), reason="torch 2.0 records no function in Python on tensors of symbolic sizes"
)
TRACING_MODES = ["real", "fake", pytest.param("symbolic", marks=[_SYMBOLIC])]
# Whether sizes are dynamic, and how the input lies.
COMPILED = ((False, "contiguous"), (True, "channels_last"), (None, "contiguous"))
SHAPES = ((2, 3, 2, 3, 4), (3, 5, 2, 2, 3))  # of input and weight
SIZES = ((2, 2, 2, 1, 2), (3, 2, 4, 3, 2), (1, 2, 3, 3, 5))
BATCHES = range(2, 9)  # seven
VALUES = {
    "stride": (2, 3, 5),
    "padding": (2, 3, 4),
    "output_padding": (2, 3, 5),
    "dilation": (2, 3, 5),
    "groups": (2, 3, 6),
}


def sized(shape: Sequence[int], device: str) -> Tensor:
    """Returns an input of a shape, requiring a gradient."""
    return checks.integers(shape, 1).to(device, torch.float32).requires_grad_()


# ---- torch.compile ------------------------------------------------------------------------------


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Returns a function as torch.compile makes it, without what was compiled before and without graph breaks."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, **options)


def check_compiled(
    backend: str,
    dynamic: bool | None,
    memory_format: str,
    device: str,
    shapes: Sequence[tuple[int, ...]] = SIZES,
) -> None:
    """A compiled call and its gradients are the eager ones, for sizes that change, and lie in memory alike."""

    def function(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ours(input + 1, weight, bias)

    run = compiled(function, backend=backend, dynamic=dynamic)
    for shape in shapes:
        _, weight, bias = leaves(*LEAVES, device=device, dtype=torch.float32)
        input = sized(shape, device)
        laid = input.contiguous(memory_format=MEMORY_FORMATS[memory_format])
        operands = (input, weight, bias)
        got, expected = run(laid, weight, bias), function(laid, weight, bias)
        assert got.stride() == expected.stride()
        torch.testing.assert_close(got, expected)
        gradients = [torch.autograd.grad(out.sum(), operands) for out in (got, expected)]
        torch.testing.assert_close(gradients[0], gradients[1])


def check_frozen_operands_compile(frozen: Sequence[str], device: str) -> None:
    """Where only some operands require gradients, a compiled call gives the eager gradients of those."""
    run = compiled(ours, backend="aot_eager")
    operands = dict(zip(LEAVES, reals(*LEAVES, device=device)))
    wanted = [tensor.requires_grad_() for name, tensor in operands.items() if name not in frozen]
    both = [function(*operands.values()).square().sum() for function in (run, ours)]
    got, expected = (torch.autograd.grad(loss, wanted) for loss in both)
    torch.testing.assert_close(got, expected)


def check_few_graphs_serve_all_sizes(device: str) -> None:
    """With dynamic=True seven sizes compile two graphs at most."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    run = compiled(ours, backend=counter, dynamic=True)
    weight, bias = reals("weight", "bias", device=device, dtype=torch.float32)
    for size in BATCHES:
        input = sized((size, 2, size + 1, size, size + 2), device)
        assert run(input, weight, bias).shape == ours(input, weight, bias).shape
    assert counter.frame_count <= 2


def check_no_more_graphs_than_native(device: str) -> None:
    """With dynamic=True two layers compile as often as native's for D, H and W in every order."""
    from torch._dynamo.testing import CompileCounter

    options: dict[str, Any] = {"device": device, "dtype": torch.float32}
    first = layers(4, 4, 3, stride=2, padding=1, **options)
    second = layers(4, 4, (1, 3, 2), stride=(1, 2, 2), **options)
    graphs = []
    for model in (nn.Sequential(*both) for both in zip(first, second)):
        counter = CompileCounter()
        run = compiled(model, backend=counter, dynamic=True)
        for size in itertools.permutations((2, 3, 4)):
            input = torch.ones(2, 4, *size, device=device)
            assert torch.equal(run(input), model(input))
        graphs.append(counter.frame_count)
    assert graphs[0] <= graphs[1]


def check_sizes_known_only_at_run_time(device: str) -> None:
    """A compiled call takes as many samples as a mask picks, which no trace can know."""
    layer, _ = layers(2, 4, 2, stride=2, device=device)
    input = checks.integers((5, 2, 2, 1, 2), 1).to(device)
    mask = torch.tensor([True, False, True, True, False], device=device)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        run = compiled(lambda input, mask: layer(input[mask]), backend="aot_eager")
        assert torch.equal(run(input, mask), layer(input[mask]))


def check_compiled_autograd(device: str) -> None:
    """Compiled autograd takes an eager call's backward."""
    layer, _ = layers(2, 4, 3, stride=2, device=device)
    input = checks.integers(SIZES[0], 1).to(device).requires_grad_()
    operands = (input, *layer.parameters())
    expected = torch.autograd.grad(layer(input).square().sum(), operands)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        layer(input).square().sum().backward()
    for operand, gradient in zip(operands, expected, strict=True):
        torch.testing.assert_close(operand.grad, gradient)


def check_one_graph_serves_all_values(name: str, device: str) -> None:
    """With dynamic=True the values of an integer argument, 0 and 1 aside, share one graph."""
    from torch._dynamo.testing import CompileCounter

    def function(input: Tensor, weight: Tensor, value: int) -> Tensor:
        return convt3d.conv_transpose3d(input, weight, **{"stride": 7, name: value})  # type: ignore[arg-type]

    counter = CompileCounter()
    run = compiled(function, backend=counter, dynamic=True)
    input, weight = (
        torch.ones(1, 12, 4, 5, 6, device=device),
        torch.ones(12, 2, 2, 3, 4, device=device),
    )
    for value in VALUES[name]:
        assert torch.equal(run(input, weight, value), function(input, weight, value))
    assert counter.frame_count == 1


def check_compiled_module(device: str) -> None:
    """A module compiles, with output_size too, and trains as the eager one does."""
    module, _ = layers(2, 4, 3, stride=2, groups=2, device=device)
    run = compiled(module, backend="aot_eager", dynamic=True)
    for size in (2, 3, 4):
        input = checks.integers((2, 2, size, size, size), size).to(device)
        torch.testing.assert_close(run(input), module(input))
        larger = [2 * size + 2] * 3
        output = run(input, output_size=larger)
        assert [*output.shape[2:]] == larger
        torch.testing.assert_close(output, module(input, output_size=larger))
        found = []
        for each in (run, module):
            module.zero_grad()
            each(input).square().sum().backward()
            found.append([parameter.grad for parameter in module.parameters()])
        torch.testing.assert_close(found[0], found[1])


def check_compiled_autocast(device: str) -> None:
    """autocast within a compiled function casts as it does in an eager one."""

    def function(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return ours(input, weight, bias)

    operands = leaves(*LEAVES, device=device, dtype=torch.float32)
    run = compiled(function, backend="aot_eager")
    got, expected = run(*operands), function(*operands)
    assert got.dtype == torch.bfloat16
    checks.assert_same_bits(got.detach(), expected.detach(), "output")
    gradients = [torch.autograd.grad(out.float().sum(), operands) for out in (got, expected)]
    for one, other in zip(*gradients):
        checks.assert_same_bits(one, other, "gradient")


def check_compiled_transforms(device: str) -> None:
    """vmap and grad of torch.func compile with the call inside them."""

    def function(input: Tensor, weight: Tensor, bias: Tensor) -> Any:
        def loss(weight: Tensor, sample: Tensor) -> Tensor:
            return ours(sample, weight, bias).square().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, input)

    operands = reals(*LEAVES, device=device)
    run = compiled(function, backend="aot_eager")
    torch.testing.assert_close(run(*operands), function(*operands))


def check_compiled_refusal(device: str) -> None:
    """A wrong call in a compiled function says what the eager one says."""
    arguments = wrong_call("channels", device)
    _, message = outcome(convt3d.conv_transpose3d, **arguments)
    run = compiled(lambda: convt3d.conv_transpose3d(**arguments), backend="aot_eager")
    error, text = outcome(run)
    assert issubclass(error, RuntimeError) and message in text


# ---- fake and meta tensors ----------------------------------------------------------------------


def run_primitives(geometry: Geometry, operands: Operands) -> list[Tensor]:
    """Calls all operators, the bias left out where there is none."""
    operators, rest = torch.ops.convt3d, checks.parameters(geometry)
    channels_last = launch.is_channels_last(operands.input, operands.weight)
    pair = operands.input, operands.grad_output
    wanted = (True, operands.bias is not None)
    return [
        operators.forward(operands.input, operands.weight, operands.bias, *rest),
        operators.grad_input(operands.grad_output, operands.weight, *rest, channels_last),
        *operators.grad_weight(*pair, geometry.kernel_size, *rest, channels_last, *wanted),
    ]


def signatures(results: Sequence[Tensor]) -> list[Signature]:
    """Returns all of tensors but their values."""
    return [(tuple(t.shape), tuple(t.stride()), t.dtype, t.device) for t in results]


def check_tensors_without_values(
    geometry: Geometry, dtype: torch.dtype, memory_format: str, bias: bool, device: str
) -> None:
    """Fake and meta tensors give shapes, strides, dtypes and devices of real ones."""
    layout = MEMORY_FORMATS[memory_format]
    operands = checks.operands(geometry, dtype, device, layout, bias)
    real = signatures(run_primitives(geometry, operands))
    with FakeTensorMode() as mode:
        assert signatures(run_primitives(geometry, operands.map(mode.from_tensor))) == real
    meta = signatures(run_primitives(geometry, operands.map(lambda tensor: tensor.to("meta"))))
    assert meta == [(*rest, torch.device("meta")) for *rest, _ in real]


def check_refusal_without_values(name: str, device: str) -> None:
    """A wrong call with fake or meta tensors is refused as one with real tensors, in the same words."""
    arguments = wrong_call(name, device)
    expected = outcome(convt3d.conv_transpose3d, **arguments)

    def mapped(change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return {
            key: change(value) if isinstance(value, Tensor) else value
            for key, value in arguments.items()
        }

    assert outcome(convt3d.conv_transpose3d, **mapped(lambda t: t.to("meta"))) == expected
    with FakeTensorMode() as mode:
        assert outcome(convt3d.conv_transpose3d, **mapped(mode.from_tensor)) == expected


# ---- export and tracing -------------------------------------------------------------------------


def operators_in(graph: torch.fx.Graph) -> list[str]:
    """Returns the operators of convt3d that a graph calls."""
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    return [name for name in names if name.startswith("convt3d.")]


def check_exported(is_dynamic: bool, device: str) -> None:
    """torch.export keeps the call as one operator, for sizes that are marked dynamic too."""
    from torch.export import Dim, export, load, save

    module, _ = layers(2, 4, 3, stride=2, groups=2, device=device)
    input = checks.integers(SIZES[0], 1).to(device)
    sizes = ({0: Dim("batch", max=64), 2: Dim("depth", max=64)},) if is_dynamic else None
    program = export(module, (input,), dynamic_shapes=sizes)
    assert operators_in(program.graph) == ["convt3d.forward.default"]
    stored = io.BytesIO()
    save(program, stored)
    stored.seek(0)
    for each in (program, load(stored)):
        for shape in ((3, 2, 5, 1, 2), SIZES[0]) if is_dynamic else SIZES[:1]:
            other = checks.integers(shape, 2).to(device)
            assert torch.equal(each.module()(other), module(other))
    if is_dynamic:
        every = {axis: Dim(name, min=2) for axis, name in ((0, "n"), (2, "d"), (3, "h"), (4, "w"))}
        program = export(module, (input.new_ones(2, 2, 4, 3, 5),), dynamic_shapes=(every,))
        for size in itertools.permutations((2, 3, 4)):
            other = checks.integers((3, 2, *size), 2).to(device)
            assert torch.equal(program.module()(other), module(other))


def check_opcheck(name: str, memory_format: str, bias: bool, device: str) -> None:
    """torch.library.opcheck finds nothing wrong with an operator: schema, derivatives, fake tensors, AOT dispatch."""
    layout = MEMORY_FORMATS[memory_format]
    input, weight, vector, grad_output = (
        tensor.contiguous(memory_format=layout).requires_grad_() if tensor.dim() == 5 else tensor
        for tensor in leaves(*LEAVES, "grad_output", device=device)
    )
    channels_last = memory_format == "channels_last"
    arguments: dict[str, tuple[Any, ...]] = {
        "forward": (input, weight, vector if bias else None, *PARAMETERS),
        "grad_input": (grad_output, weight, *PARAMETERS, channels_last),
        "grad_weight": (
            *(input, grad_output, GEOMETRY.kernel_size, *PARAMETERS),
            *(channels_last, True, bias),
        ),
    }
    operator = getattr(torch.ops.convt3d, name).default
    results = torch.library.opcheck(operator, arguments[name])
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


def check_make_fx(mode: Any, device: str) -> None:
    """make_fx records a call and its gradients as calls of the operators."""

    def gradients(*operands: Tensor) -> tuple[Tensor, ...]:
        each = [operand.detach().requires_grad_() for operand in operands]
        return torch.autograd.grad(ours(*each).square().sum(), each)

    operands = reals(*LEAVES, device=device)
    graph = make_fx(gradients, tracing_mode=mode)(*operands)
    assert operators_in(graph.graph) == [f"convt3d.{p}.default" for p in plan.PRIMITIVES]
    for got, expected in zip(graph(*operands), gradients(*operands), strict=True):
        assert torch.equal(got, expected)


def check_traced(device: str) -> None:
    """torch.jit.trace of a module serves other sizes, keeps gradients, and is saved and loaded."""
    module, _ = layers(2, 4, 3, stride=2, groups=2, device=device)
    example = checks.integers(SIZES[0], 1).to(device)
    traced = torch.jit.trace(module, (example,))
    stored = io.BytesIO()
    torch.jit.save(traced, stored)
    stored.seek(0)
    for each in (traced, torch.jit.load(stored)):
        for shape in SIZES:
            inputs = [checks.integers(shape, 2).to(device).requires_grad_() for _ in range(2)]
            got, expected = each(inputs[0]), module(inputs[1])
            assert torch.equal(got, expected)
            got.sum().backward()
            expected.sum().backward()
            assert torch.equal(inputs[0].grad, inputs[1].grad)  # type: ignore[arg-type]


def check_scripted(device: str) -> None:
    """torch.jit.script of a module gives what the module gives."""
    module, _ = layers(2, 4, 3, stride=2, device=device)
    input = checks.integers(SIZES[0], 1).to(device)
    assert torch.equal(torch.jit.script(module)(input), module(input))


class _ToTheSizeOf(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor, like: Tensor) -> Tensor:
        return self.layer(input, output_size=like.shape[2:])  # type: ignore[no-any-return]


def check_symbolically_traced(device: str) -> None:
    """torch.fx.symbolic_trace takes a module as a node, as native's, and goes through a function."""
    module, _ = layers(2, 4, 3, stride=2, device=device)
    operands = reals(*LEAVES, device=device)
    model = nn.Sequential(module)
    assert torch.equal(torch.fx.symbolic_trace(model)(operands[0]), module(operands[0]))
    enlarging = _ToTheSizeOf(module)
    like = torch.zeros(1, 1, *(size + 1 for size in module(operands[0]).shape[2:]), device=device)
    traced = torch.fx.symbolic_trace(enlarging)
    assert torch.equal(traced(operands[0], like), enlarging(operands[0], like))
    assert [node.op for node in traced.graph.nodes if node.target == "layer"] == ["call_module"]
    assert torch.equal(torch.fx.symbolic_trace(ours)(*operands), ours(*operands))


def check_flops_are_counted(device: str) -> None:
    """FlopCounterMode counts what it counts of native, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for function in (convt3d.conv_transpose3d, nn.functional.conv_transpose3d):
        # One group: of more, PyTorch's formula counts grad_weight as many times as there are groups.
        input, weight = (checks.integers(shape, 1).to(device) for shape in SHAPES)
        with FlopCounterMode(display=False) as counter:
            function(input.requires_grad_(), weight.requires_grad_(), stride=2).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
