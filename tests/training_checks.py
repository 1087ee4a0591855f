"""What training with convt3d.ConvTranspose3d must give on any device, beside torch.nn.ConvTranspose3d."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import convt3d
from tests import operator_checks as checks
from tests.feature_calls import LEAVES, TORCH, layers, leaves, ours, reals, recorded
from tests.operator_checks import MEMORY_FORMATS

Module = type[nn.ConvTranspose3d]

OURS, NATIVE = convt3d.ConvTranspose3d, nn.ConvTranspose3d
OPTIONS: dict[str, Any] = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "weight_decay": 0.1},
    "Adam": {},
    "AdamW": {},
    "RMSprop": {},
}
RANKS = 2
DISTRIBUTED: tuple[dict[str, Any], ...] = (
    {},
    {"find_unused_parameters": True},
    {"gradient_as_bucket_view": True},
    {"static_graph": True},
)
# Which parametrizations of a weight; what this version lacks is left out.
NORMS = tuple(
    name
    for name in ("weight_norm", "spectral_norm", "orthogonal")
    if hasattr(parametrizations, name)
)


def decoder(layer: Module, device: str) -> nn.Sequential:
    """Returns two layers with something between, the same ones for ours and native's."""
    torch.manual_seed(0)
    model = nn.Sequential(layer(2, 4, 3, **OPTIONS), nn.ReLU(), layer(4, 2, 2, bias=False))
    return model.to(device, torch.float64)


def as_integers(model: nn.Module) -> Any:
    """Makes the parameters small integers: a few steps of training are then exact in float64."""
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(checks.integers(parameter.shape, seed) % 3 - 1)
    return model


def example(device: str, batch: int = 2) -> Tensor:
    return checks.integers((batch, 2, 2, 3, 2), 7).to(device)


def steps_of(model: nn.Module, input: Tensor, share: float = 1.0, steps: int = 2) -> list[Tensor]:
    """Trains with plain SGD and returns the parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-4)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(input).sum() * share).backward()
        optimizer.step()
    return [parameter.detach().cpu() for parameter in model.parameters()]


def gradients_of(model: nn.Module, *others: Tensor) -> list[Any]:
    """Returns the gradients of other leaves and of the parameters of a model."""
    return [leaf.grad for leaf in (*others, *model.parameters())]


def _assert_equal(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


# ---- optimizers ---------------------------------------------------------------------------------


def check_optimizer(name: str, device: str) -> None:
    """Three steps of an optimizer are native's, within rounding."""
    trained = []
    for layer in (OURS, NATIVE):
        model = decoder(layer, device)
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, **OPTIMIZERS[name])
        for _ in range(3):
            optimizer.zero_grad()
            model(example(device)).square().mean().backward()
            optimizer.step()
        trained.append([*model.parameters()])
    torch.testing.assert_close(trained[0], trained[1])
    before = [*decoder(OURS, device).parameters()]
    assert not any(torch.equal(one, other) for one, other in zip(trained[0], before))


# ---- checkpoints of activations -----------------------------------------------------------------


def check_activation_checkpoint(use_reentrant: bool, device: str) -> None:
    """A forward that is run again in the backward gives the same bits."""
    model = decoder(OURS, device)
    results = []
    for is_saved in (True, False):
        model.zero_grad(set_to_none=True)
        input = example(device).requires_grad_()
        output = model(input) if is_saved else checkpoint(model, input, use_reentrant=use_reentrant)
        with recorded() as work:
            output.square().sum().backward()
        assert work.launched.count("forward") == (0 if is_saved else 2)
        results.append([output.detach(), *gradients_of(model, input)])
    _assert_equal(results[0], results[1])


# ---- switches -----------------------------------------------------------------------------------


def results_of(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Returns output and gradients of a call whose sums depend on their order and precision."""
    operands = leaves(*LEAVES, device=device, dtype=dtype)
    output = ours(*operands)
    grad_output = reals("grad_output", device=device, dtype=dtype)[0]
    return [output.detach(), *torch.autograd.grad(output, operands, grad_output)]


def check_deterministic_algorithms(dtype: torch.dtype, device: str) -> None:
    """Deterministic algorithms may be demanded: nothing is refused, and no bit changes."""
    before, expected = torch.are_deterministic_algorithms_enabled(), results_of(device, dtype)
    torch.use_deterministic_algorithms(True)
    try:
        got = results_of(device, dtype)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)
    for results in (got, results_of(device, dtype)):
        for one, other in zip(results, expected, strict=True):
            checks.assert_same_bits(one, other, "deterministic")


def _allow_less_precision(device: str) -> Iterator[str]:
    """Turns one switch after the other; their effect cannot be undone, so in a process of its own."""
    if device == "cpu":
        torch.backends.cudnn.allow_tf32 = True
        yield "cudnn.allow_tf32"
    torch.backends.cuda.matmul.allow_tf32 = True
    yield "cuda.matmul.allow_tf32"
    for precision in ("high", "medium"):
        torch.set_float32_matmul_precision(precision)
        yield f"set_float32_matmul_precision({precision!r})"
    if TORCH < (2, 9):
        return
    backends: Any = torch.backends
    names = ("", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn")
    for name in names if device == "cpu" else ("cuda.matmul", "cudnn.rnn"):
        owner = backends
        for part in filter(None, name.split(".")):
            owner = getattr(owner, part)
        owner.fp32_precision = "tf32"
        yield f"{name}.fp32_precision"


def _compare_switches(_: int, device: str) -> None:
    torch.backends.cudnn.allow_tf32 = False
    expected = results_of(device, torch.float32)
    for switch in _allow_less_precision(device):
        for one, other in zip(results_of(device, torch.float32), expected, strict=True):
            checks.assert_same_bits(one, other, switch)


def check_precision_switches(device: str) -> None:
    """No switch that allows TF32 changes a bit, but for cuDNN's on a GPU: float32 is computed in float32."""
    spawn(_compare_switches, (device,))


# ---- data parallel ------------------------------------------------------------------------------


def _train_one_rank(rank: int, folder: str, device: str) -> None:
    place = f"cuda:{rank}" if device == "cuda" else device
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=RANKS,
    )
    half = example("cpu", 2 * RANKS)[2 * rank : 2 * rank + 2].to(place)
    found = []
    for options in DISTRIBUTED:
        ids: Any = [rank] if device == "cuda" else None
        model = DistributedDataParallel(
            as_integers(decoder(OURS, place)), device_ids=ids, **options
        )
        found.append(steps_of(model, half))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def check_distributed_data_parallel(folder: Path, device: str) -> None:
    """Two processes with half of a batch each train as one with the whole: exactly, on integers."""
    spawn(_train_one_rank, (str(folder), device), nprocs=RANKS)
    # The processes' gradients are averaged.
    expected = steps_of(
        as_integers(decoder(OURS, device)), example(device, 2 * RANKS), share=1 / RANKS
    )
    for rank in range(RANKS):
        for trained in torch.load(folder / f"{rank}.pt", weights_only=True):
            _assert_equal(trained, expected)


# ---- what wraps or changes a module -------------------------------------------------------------


def check_norm(name: str, device: str) -> None:
    """A parametrized weight gives native's output and gradients, and leaves again as a parameter."""
    results = []
    for layer in (OURS, NATIVE):
        torch.manual_seed(0)
        module = layer(2, 4, 2, stride=2).to(device, torch.float64)
        torch.manual_seed(1)
        getattr(parametrizations, name)(module)
        output = module(example(device))
        output.square().sum().backward()
        gradients = gradients_of(module)
        parametrize.remove_parametrizations(module, "weight")
        assert isinstance(module, layer) and isinstance(module.weight, nn.Parameter)
        results.append([output, *gradients, module.weight])
    torch.testing.assert_close(results[0], results[1])


def check_hooked_norms(device: str) -> None:
    """The older weight_norm and spectral_norm, which work by hooks, give native's output and gradients."""
    for norm in (nn.utils.weight_norm, nn.utils.spectral_norm):
        results = []
        for layer in (OURS, NATIVE):
            torch.manual_seed(0)
            module = layer(2, 4, 2, stride=2).to(device, torch.float64)
            torch.manual_seed(1)
            output = norm(module)(example(device))
            output.square().sum().backward()
            results.append([output, *gradients_of(module)])
        torch.testing.assert_close(results[0], results[1])


def check_pruning(device: str) -> None:
    """What is pruned stays zero, gets no gradient, and the rest is native's."""
    results = []
    for module in layers(2, 4, 2, stride=2, device=device):
        prune.l1_unstructured(module, "weight", amount=0.5)
        output = module(example(device))
        output.square().sum().backward()
        (of_weight,) = (each.grad for each in module.parameters() if each.dim() == 5)
        assert of_weight is not None and not of_weight[module.weight == 0].any()
        prune.remove(module, "weight")
        assert int((module.weight == 0).sum()) == module.weight.numel() // 2
        results.append([output, of_weight, module.weight])
    torch.testing.assert_close(results[0], results[1])


def check_copies(device: str) -> None:
    """A deep copy computes the same and shares nothing; AveragedModel averages its parameters."""
    model = decoder(OURS, device)
    average = AveragedModel(model, avg_fn=lambda old, new, _: (old + new) / 2)
    average.update_parameters(model)
    twin = copy.deepcopy(model)
    assert isinstance(twin[0], OURS) and torch.equal(twin(example(device)), model(example(device)))
    steps_of(model, example(device))
    for parameter, other in zip(twin.parameters(), decoder(OURS, device).parameters()):
        assert torch.equal(parameter, other)
    average.update_parameters(model)
    with torch.no_grad():
        for parameter, old in zip(model.parameters(), twin.parameters()):
            parameter.copy_((parameter + old) / 2)
    assert torch.equal(average(example(device)), model(example(device)))


def check_conversions(dtype: torch.dtype, memory_format: str, device: str) -> None:
    """A module that was moved to a dtype and a format has output and gradients in them, as native's has."""
    layout: Any = MEMORY_FORMATS[memory_format]
    convert: dict[torch.dtype, Callable[[nn.Module], Any]] = {
        torch.float64: nn.Module.double,
        torch.float32: nn.Module.float,
        torch.float16: nn.Module.half,
        torch.bfloat16: nn.Module.bfloat16,
    }
    module, exact = (as_integers(layer) for layer in layers(2, 4, 3, stride=2, device=device))
    module = convert[dtype](module).to(memory_format=layout)
    input = example(device).to(dtype).contiguous(memory_format=layout).requires_grad_()
    output = module(input)
    output.sum().backward()
    tensors: list[Any] = [output, input.grad, module.weight, module.weight.grad]
    for tensor in tensors:
        assert tensor.dtype == dtype and tensor.is_contiguous(memory_format=layout)
    expected = exact(example(device)).to(dtype)
    checks.assert_same_bits(output.detach(), expected.detach(), memory_format)


def check_made_elsewhere(device: str) -> None:
    """A module may be made on meta or under a default device, emptied there and loaded from a state."""
    with torch.device(device):
        module = OURS(2, 4, 3, stride=2)
    assert module.weight.device.type == device
    empty = OURS(2, 4, 3, stride=2, device="meta")
    assert empty(torch.empty(1, 2, 2, 3, 2, device="meta")).shape == (1, 4, 5, 7, 5)
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    loaded = empty.to_empty(device=device)
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    input = example(device).float()
    assert torch.equal(loaded(input), module(input))
