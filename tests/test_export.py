"""The one-file version: what is in it, that it runs alone, and that it computes what the package computes."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import convt3d
from convt3d.export import writer
from tests import kernelbench

ROOT = Path(__file__).parents[1]

# What KernelBench's static checker refuses or warns of, in code of which it has cut what follows # and // on a line.
# Left out is a warning about conversions to fp16 in tasks in fp32: the file has kernels for both.
FORBIDDEN = (
    *(r"\btry\s*:", r"\bexcept\s*:", r"\bexcept\s+\w+", r"\bpass\b"),
    r"torch\.nn\.(?!(Module|Parameter|init)\b)",
    r"\bnn\.functional\b",
    r"\bF\.\w+\(",
    r"\btorch\.(conv|mm|matmul|einsum|linear)\w*\s*\(",
    r"\b(threading|multiprocessing|concurrent\.futures|ThreadPoolExecutor|ProcessPoolExecutor)\b",
    *(r"\bcuda\.Stream\s*\(", r"cuda\.stream\b", r"\.(wait|record)_stream\s*\("),
    *(r"_make_subclass", r"class\s+\w+.*\((torch\.)?Tensor\)", r"Tensor\.__new__"),
    r"(cuda\.Event|cuda\.synchronize|time\.perf_counter|time\.time)\S*\s*=",
)


def run_python(code: str, folder: Path, **environment: str) -> str:
    """Runs code in a fresh interpreter that starts in a folder and does not find the package."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def exported(*options: str) -> str:
    command = [sys.executable, "-m", "convt3d.export", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def text() -> str:
    return exported()


def code_of(text: str) -> str:
    return "\n".join(line.partition("#")[0].partition("//")[0] for line in text.splitlines())


# ---- what is in it ------------------------------------------------------------------------------


@pytest.mark.parametrize("emulator", [True, False])
def test_the_file_keeps_the_static_rules(emulator: bool) -> None:
    code = code_of(writer.write(emulator=emulator))
    for rule in FORBIDDEN:
        assert not (found := re.search(rule, code)), (rule, found)
    assert "__global__" in code and "load_inline" in code


@pytest.mark.parametrize(
    "code",
    [
        *(
            "try:",
            "except ValueError:",
            "    pass",
            "torch.nn.Conv3d(1, 1, 1)",
            "threading.Thread()",
        ),
        *(
            "nn.functional.relu(x)",
            "torch.cuda.Stream()",
            "class Lazy(torch.Tensor): ...",
        ),
    ],
)
def test_the_rules_find_what_they_forbid(code: str) -> None:
    assert any(re.search(rule, code_of(code)) for rule in FORBIDDEN)


def test_the_file_imports_torch_and_the_standard_library_alone(text: str) -> None:
    packages = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert packages - {"torch"} <= sys.stdlib_module_names
    assert "__future__" not in packages  # not allowed below a line that someone puts on top


def test_the_header_says_what_it_is(text: str) -> None:
    header = ast.get_docstring(ast.parse(text)) or ""
    assert "`ModelNew`" in header and f"version {convt3d.__version__}" in header
    assert "`python -m convt3d.export`" in header


def test_the_kernels_are_those_of_the_package(text: str) -> None:
    from convt3d.kernels import gather, params, primitives, weight

    for module in (gather, params, primitives, weight):
        assert module.SOURCE in text


def test_without_the_emulator_its_code_is_left_out() -> None:
    text = writer.write(emulator=False)
    assert "HOST_SOURCE" not in text and "WATCH_SOURCE" not in text
    assert "There is no kernel for CPU tensors." in text


def test_two_definitions_of_one_name_are_refused() -> None:
    whole = writer.Writer()
    whole.check_names()
    plan = whole.modules["convt3d.plan"]
    plan.definitions["triple"] = plan.definitions["choose"]  # geometry.py has one
    whole.taken.add((plan.name, "triple"))
    with pytest.raises(ValueError, match="would have one name in the file"):
        whole.check_names()


def test_a_local_variable_that_hides_a_definition_is_refused() -> None:
    whole = writer.Writer()
    launch = whole.modules["convt3d.launch"]
    (hiding,) = ast.parse("def fill(choose):\n    return plan.choose(choose)").body
    launch.definitions["fill"] = hiding
    whole.taken.add((launch.name, "fill"))
    with pytest.raises(ValueError, match="line 2: a local variable would hide choose"):
        whole.check_names()


# ---- --init -------------------------------------------------------------------------------------


def model_of(text: str) -> Any:
    """Returns ModelNew as KernelBench gets it: by exec, below lines of its own."""
    context: dict[str, Any] = {}
    exec("import os\n" + text, context)
    return context["ModelNew"]


@pytest.mark.parametrize("number", kernelbench.TASKS)
def test_init_gives_the_constructor_of_each_task(number: int) -> None:
    task = kernelbench.TASKS[number]
    model = model_of(writer.write(task.order))(*task.arguments)
    layer = model.conv_transpose3d
    native = kernelbench.native_model(task)
    assert layer.weight.shape == native.weight.shape
    for name in ("stride", "padding", "output_padding", "dilation", "groups"):
        assert getattr(layer, name) == getattr(native, name)
    assert layer.bias is None


def test_what_init_leaves_out_becomes_a_keyword() -> None:
    order = "groups, in_channels,out_channels,_,kernel_size,bias"
    text = exported("--init", order)
    assert f"`python -m convt3d.export --init '{order}'`" in text  # can be run again
    parameters = inspect.signature(model_of(text)).parameters
    positional = [
        name for name, each in parameters.items() if each.kind == each.POSITIONAL_OR_KEYWORD
    ]
    assert positional == [
        "groups",
        "in_channels",
        "out_channels",
        "ignored_3",
        "kernel_size",
        "bias",
    ]
    assert list(parameters)[6:] == ["stride", "padding", "output_padding", "dilation"]
    assert parameters["bias"].default is False
    assert parameters["groups"].default is inspect.Parameter.empty


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("in_channels,out_channels", "lacks ['kernel_size']"),
        ("in_channels,out_channels,kernel_size,strides", "has 'strides', but must be of"),
        ("in_channels,out_channels,kernel_size,bias,bias", "has 'bias' more than once"),
        ("in_channels,out_channels,kernel_size,,groups", "has '', but must be of"),
        ("", "has '', but must be of"),
    ],
)
def test_a_wrong_init_is_refused_by_name(names: str, message: str) -> None:
    command = [sys.executable, "-m", "convt3d.export", "--init", names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr and not done.stdout


# ---- what it computes ---------------------------------------------------------------------------

COMPARE = """
import sys, torch
assert not any(name.partition(".")[0] == "convt3d" for name in sys.modules)
import model_new
torch.manual_seed(3)
model = model_new.ModelNew(4, 6, (3, 2, 3), stride=2, padding=1, output_padding=1, groups=2, bias=True)
x = torch.randn(2, 4, 3, 4, 3).requires_grad_()
output = model(x)
gradients = torch.autograd.grad(output.sin().sum(), [x, *model.parameters()])
forward = torch.func.jvp(model, (x.detach(),), (torch.ones_like(x),))[1]
mapped = torch.func.vmap(model)(x.detach()[None])
torch.save([output.detach(), *gradients, forward.detach(), mapped.detach()], "results.pt")
assert not any(name.partition(".")[0] == "convt3d" for name in sys.modules)
"""


def test_alone_in_an_empty_directory_it_gives_the_bits_of_the_package(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "model_new.py").write_text(text)
    run_python(COMPARE, tmp_path)
    torch.manual_seed(3)
    model = convt3d.ModelNew(4, 6, (3, 2, 3), 2, 1, 1, groups=2, bias=True)
    x = torch.randn(2, 4, 3, 4, 3).requires_grad_()
    output = model(x)
    gradients = torch.autograd.grad(output.sin().sum(), [x, *model.parameters()])
    forward = torch.func.jvp(model, (x.detach(),), (torch.ones_like(x),))[1]
    mapped = torch.func.vmap(model)(x.detach()[None])
    expected = [output, *gradients, forward, mapped]
    for one, other in zip(torch.load(tmp_path / "results.pt"), expected, strict=True):
        assert torch.equal(one, other.detach())


def test_files_and_the_package_work_side_by_side(text: str) -> None:
    models = [model_of(text), model_of(text), convt3d.ModelNew]
    x = torch.randn(1, 2, 2, 2, 2)
    outputs = []
    for model in models:
        torch.manual_seed(0)
        outputs.append(model(2, 3, 2)(x))
    assert torch.equal(outputs[0], outputs[2]) and torch.equal(outputs[1], outputs[2])


def test_without_the_emulator_cpu_tensors_are_refused() -> None:
    model = model_of(writer.write(emulator=False))(1, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor is it said that they are emulated
        with pytest.raises(RuntimeError, match="there is no kernel for CPU tensors in this file"):
            model(torch.ones(1, 1, 1, 1, 1))


def test_the_layer_of_the_file_is_natives_in_all_that_a_state_dict_and_a_repr_show(
    text: str,
) -> None:
    context: dict[str, Any] = {}
    exec(text, context)
    settings: dict[str, Any] = {
        "stride": 2,
        "padding": (1, 0, 1),
        "output_padding": 1,
        "groups": 2,
        "dilation": 3,
    }
    torch.manual_seed(5)
    native = torch.nn.ConvTranspose3d(4, 6, (3, 2, 1), **settings)
    torch.manual_seed(5)
    ours = context["ConvTranspose3d"](4, 6, (3, 2, 1), **settings)
    for name, value in native.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    for name in ("in_channels", "out_channels", "kernel_size", *settings):
        assert getattr(ours, name) == getattr(native, name) and name.split("_c")[0] in repr(ours)
