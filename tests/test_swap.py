"""`replace` and `restore`: which modules change their class, and that nothing else changes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import convt3d

Native = nn.ConvTranspose3d
Ours = convt3d.ConvTranspose3d


class Own(Native):
    """A user's subclass."""


class Decoder(nn.Module):
    """Two layers one within the other, one of them known by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Native(2, 3, 2, stride=2)
        self.inner = nn.Sequential(nn.Conv3d(3, 3, 1), Native(3, 2, 3, padding=1, bias=False))
        self.same = self.inner[1]
        self.flat = nn.ConvTranspose2d(2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.same(self.inner(self.up(x)).tile(1, 2, 1, 1, 1)[:, :3])


def decoder(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder().double()


def test_every_native_module_is_swapped_once_and_named() -> None:
    model = decoder()
    swap = convt3d.replace(model)
    assert swap.swapped == ("up", "inner.1")
    assert not swap.left
    assert type(model.up) is type(model.inner[1]) is type(model.same) is Ours
    assert type(model.flat) is nn.ConvTranspose2d
    assert str(swap) == "2 swapped\n  up\n  inner.1"


def test_the_model_itself_may_be_the_module() -> None:
    module = Native(1, 1, 1)
    assert str(convt3d.replace(module)) == "1 swapped\n  (the model itself)"
    assert type(module) is Ours


def test_restore_undoes_replace() -> None:
    model = decoder()
    convt3d.replace(model)
    assert convt3d.restore(model).swapped == ("up", "inner.1")
    assert type(model.up) is type(model.same) is Native
    assert convt3d.restore(model).swapped == ()


def test_replacing_twice_swaps_nothing_more() -> None:
    model = decoder()
    convt3d.replace(model)
    again = convt3d.replace(model)
    assert again.swapped == () and not again.left


def test_outputs_and_gradients_are_those_of_the_native_model() -> None:
    native, ours = decoder(), decoder()
    convt3d.replace(ours)
    x = torch.randn(2, 2, 3, 2, 3, dtype=torch.float64)
    expected, got = native(x), ours(x)
    torch.testing.assert_close(got, expected)
    expected.sum().backward()
    got.sum().backward()
    for one, other in zip(ours.parameters(), native.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


def test_parameters_hooks_and_optimizer_stay() -> None:
    model = decoder()
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls: list[str] = []
    model.up.register_forward_hook(lambda *_: calls.append("forward"))
    convt3d.replace(model)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    model(torch.ones(1, 2, 2, 2, 2, dtype=torch.float64)).sum().backward()
    weight = model.up.weight.clone()
    optimizer.step()
    assert calls == ["forward"]
    assert not torch.equal(model.up.weight, weight)


def test_training_mode_and_requires_grad_stay() -> None:
    model = decoder().eval()
    model.up.weight.requires_grad_(False)
    convt3d.replace(model)
    assert not model.up.training and not model.up.weight.requires_grad


# ---- what is left as it is ----------------------------------------------------------------------


def test_a_subclass_is_left_and_named() -> None:
    model = nn.Sequential(Own(1, 1, 1), Native(1, 1, 1))
    swap = convt3d.replace(model)
    assert swap.swapped == ("1",)
    assert type(model[0]) is Own
    assert "Own may do more than ConvTranspose3d" in swap.left["0"]
    assert str(swap).splitlines()[2:] == ["1 left", f"  0: {swap.left['0']}"]


def test_a_module_whose_forward_was_replaced_is_left() -> None:
    module = Native(1, 1, 1)
    vars(module)["forward"] = torch.zeros_like
    swap = convt3d.replace(module)
    assert swap.left == {"": "its forward was replaced"} and type(module) is Native


def test_a_lazy_module_is_left_until_it_has_run() -> None:
    model = nn.Sequential(nn.LazyConvTranspose3d(2, 1))
    assert "run the model once" in convt3d.replace(model).left["0"]
    model(torch.ones(1, 3, 1, 1, 1))
    assert convt3d.replace(model).swapped == ("0",)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model is a list, but must be a torch\.nn\.Module"):
        convt3d.replace([Native(1, 1, 1)])  # type: ignore[arg-type]


# ---- parametrized modules -----------------------------------------------------------------------


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_parametrized_module_is_swapped_and_restored() -> None:
    module = Native(1, 1, 1, bias=False)
    parametrize.register_parametrization(module, "weight", Doubled())
    x = torch.ones(1, 1, 1, 1, 1)
    expected = module(x)
    assert convt3d.replace(module).swapped == ("",)
    assert isinstance(module, Ours) and parametrize.is_parametrized(module, "weight")
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(copy.deepcopy(module)(x), expected)
    parametrize.remove_parametrizations(module, "weight")
    assert type(module) is Ours
    parametrize.register_parametrization(module, "weight", Doubled())
    assert convt3d.restore(module).swapped == ("",)
    assert not isinstance(module, Ours)


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
def test_the_parametrizations_of_torch_work_on_a_swapped_module(norm: str) -> None:
    if not hasattr(parametrizations, norm):
        pytest.skip(f"torch {torch.__version__} has no parametrizations.{norm}")
    torch.manual_seed(0)
    module = getattr(parametrizations, norm)(Native(2, 3, 2).double()).eval()
    x = torch.randn(1, 2, 2, 2, 2, dtype=torch.float64)
    expected = module(x)
    assert convt3d.replace(module).swapped == ("",)
    torch.testing.assert_close(module(x), expected)
    module(x).sum().backward()


# ---- state between the two ----------------------------------------------------------------------


def renamed(data: bytes, old: type, new: type) -> Any:
    """Unpickles with one class in the place of another, as a program does that has only the other."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            found = super().find_class(module, name)
            return new if found is old else found

    return Unpickler(io.BytesIO(data)).load()


@pytest.mark.parametrize("old, new", [(Native, Ours), (Ours, Native)])
def test_a_pickle_of_one_loads_as_the_other(old: Any, new: Any) -> None:
    torch.manual_seed(1)
    module = old(2, 4, (1, 2, 3), stride=2, padding=(0, 1, 1), groups=2, dilation=2)
    loaded = renamed(pickle.dumps(module), old, new)
    assert type(loaded) is new
    assert {**vars(loaded), "_parameters": 0} == {**vars(module), "_parameters": 0}
    x = torch.randn(1, 2, 2, 2, 2)
    torch.testing.assert_close(loaded(x), module(x))


def test_the_pickle_of_a_restored_model_needs_no_convt3d() -> None:
    model = nn.Sequential(Native(1, 1, 1))
    convt3d.replace(model)
    convt3d.restore(model)
    assert b"convt3d" not in pickle.dumps(model)


def test_a_whole_model_is_saved_and_loaded(tmp_path: Any) -> None:
    model = nn.Sequential(Ours(1, 2, 2))
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)  # the whole model
    x = torch.ones(1, 1, 2, 2, 2)
    assert torch.equal(loaded(x), model(x))
