"""The modules against torch.nn.ConvTranspose3d: constructor, parameters, output_size, state."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import convt3d
from convt3d.export import own_module

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no_bias": {"bias": False},
    "each_axis": {"stride": (2, 1, 3), "padding": (1, 0, 2), "output_padding": (1, 0, 2)},
    "groups": {"groups": 2, "stride": 2, "dilation": 3, "output_padding": 1},
}
CLASSES = [convt3d.ConvTranspose3d, own_module.ConvTranspose3d]


def seeded(cls: Any, *arguments: Any, **options: Any) -> Any:
    torch.manual_seed(7)
    return cls(*arguments, **options)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__module__)
def test_the_same_seed_gives_the_parameters_and_the_output_of_native(cls: Any, name: str) -> None:
    options = CONFIGURATIONS[name]
    native = seeded(nn.ConvTranspose3d, 4, 6, (3, 2, 3), **options)
    next_number = torch.rand(1)
    ours = seeded(cls, 4, 6, (3, 2, 3), **options)
    assert torch.equal(torch.rand(1), next_number)
    assert list(ours.state_dict()) == list(native.state_dict())
    for one, other in zip(ours.parameters(), native.parameters(), strict=True):
        assert torch.equal(one, other)
    x = torch.randn(2, 4, 3, 2, 3)
    torch.testing.assert_close(ours(x), native(x))
    torch.testing.assert_close(ours(x[0]), native(x[0]))


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__module__)
def test_state_dicts_load_both_ways(cls: Any, name: str) -> None:
    native, ours = (kind(4, 6, 2, **CONFIGURATIONS[name]) for kind in (nn.ConvTranspose3d, cls))
    x = torch.randn(1, 4, 2, 2, 2)
    ours.load_state_dict(native.state_dict())
    torch.testing.assert_close(ours(x), native(x))
    ours.reset_parameters()
    native.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), native(x))


def test_the_constructor_repr_and_attributes_are_those_of_native() -> None:
    native, ours = nn.ConvTranspose3d, convt3d.ConvTranspose3d
    assert inspect.signature(ours) == inspect.signature(native)
    for options in CONFIGURATIONS.values():
        one, other = ours(4, 6, 3, **options), native(4, 6, 3, **options)
        assert repr(one) == repr(other)
        assert list(vars(one)) == list(vars(other))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__module__)
@pytest.mark.parametrize("groups", [3, 4])
def test_channels_that_groups_do_not_divide_are_refused(cls: Any, groups: int) -> None:
    for kind in (nn.ConvTranspose3d, cls):
        with pytest.raises(ValueError, match="divisible by"):
            kind(4, 6, 3, groups=groups)


@pytest.mark.parametrize("output_size", [(7, 8, 8), (2, 6, 7, 7, 8), torch.Size([8, 8, 8])])
def test_output_size_decides_output_padding(output_size: Any) -> None:
    native = seeded(nn.ConvTranspose3d, 4, 6, 3, stride=2)
    ours = seeded(convt3d.ConvTranspose3d, 4, 6, 3, stride=2)
    x = torch.randn(2, 4, 3, 3, 3)
    output = ours(x, output_size=output_size)
    assert output.shape[2:] == tuple(output_size)[-3:]
    torch.testing.assert_close(output, native(x, output_size=output_size))


@pytest.mark.parametrize("output_size", [(6, 7, 7), (7, 7, 9), (7, 7), (1, 7, 7, 7)])
def test_an_output_size_that_nothing_gives_is_refused(output_size: tuple[int, ...]) -> None:
    x = torch.randn(2, 4, 3, 3, 3)
    for cls in (nn.ConvTranspose3d, convt3d.ConvTranspose3d):
        with pytest.raises(ValueError, match="output"):
            cls(4, 6, 3, stride=2)(x, output_size=output_size)


def test_a_padding_mode_other_than_zeros_is_refused() -> None:
    for cls in (nn.ConvTranspose3d, convt3d.ConvTranspose3d):
        with pytest.raises(ValueError, match="zeros"):
            cls(1, 1, 1, padding_mode="reflect")
        module = cls(1, 1, 1)
        module.padding_mode = "reflect"
        with pytest.raises(ValueError, match="zeros"):
            module(torch.ones(1, 1, 1, 1, 1))


class Model(nn.Module):
    """A plain model, as ModelNew replaces it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.conv_transpose3d = nn.ConvTranspose3d(*arguments, **{"bias": False, **options})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_transpose3d(x)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_model_new_takes_the_place_of_the_plain_model(name: str) -> None:
    plain = seeded(Model, 4, 6, (3, 2, 3), **CONFIGURATIONS[name])
    new = seeded(convt3d.ModelNew, 4, 6, (3, 2, 3), **CONFIGURATIONS[name])
    assert list(new.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 4, 3, 2, 3)
    torch.testing.assert_close(new(x), plain(x))
    new.load_state_dict(plain.state_dict())


def test_model_new_names_its_arguments_in_the_agreed_order() -> None:
    parameters = inspect.signature(convt3d.ModelNew).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    required = inspect.Parameter.empty
    assert defaults == {
        **dict.fromkeys(("in_channels", "out_channels", "kernel_size"), required),
        **{"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1},
        "bias": False,
    }
    assert list(defaults)[3:] == [
        *("stride", "padding", "output_padding", "dilation", "groups", "bias"),
    ]
