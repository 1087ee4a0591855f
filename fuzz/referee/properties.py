"""The rows of a judgement: what each asserts, on which cases, and by which probe."""

from __future__ import annotations

from dataclasses import dataclass

from fuzz.case import Case
from fuzz.number import DTYPES
from fuzz.outcome import RESULTS
from fuzz.referee.pool import FEATURES


@dataclass(frozen=True)
class Property:
    """A row that has cases of its own.

    Args:
        name: of the row.
        asserts: a sentence.
        probe: a function of fuzz.referee.probes.
        features: features that each case has, of fuzz.referee.pool.FEATURES.
        drawn_with: features that each drawn case has; of given cases they are not demanded.
        mixes: features that a case may have besides, unless their own row failed.
        all_dtypes: a case may have any dtype, unless its own row failed.
        dtype: of the cases; empty for the first dtype of the judgement.
        wants: gradients to compute; None for those whose own row passed.
        placements: of input and grad_output, one case after the other.
        lane: of the data; empty for any.
        needs_gpu: the row makes sense on a GPU only.
        needs_right_output: it says nothing where `forward` is wrong.
    """

    name: str
    asserts: str
    probe: str = "run"
    features: tuple[str, ...] = ()
    drawn_with: tuple[str, ...] = ()
    mixes: tuple[str, ...] = ()
    all_dtypes: bool = False
    dtype: str = ""
    wants: tuple[str, ...] | None = None
    placements: tuple[str, ...] = ("dense",)
    lane: str = ""
    needs_gpu: bool = False
    needs_right_output: bool = True


PARAMETERS = ("stride", "padding", "output_padding", "dilation", "groups", "bias")
ALL = tuple(FEATURES)

BUILDS = "builds"
FORWARD = "forward"
SPEED = "speed"

# Plain: one sample, no parameter but the sizes. What fails here is left out of every later row.
_RESULTS = (
    Property("forward", "the output is right on plain cases", wants=(), needs_right_output=False),
    Property("grad_input", "so is the gradient of the input, asked for alone", wants=RESULTS[1:2]),
    Property("grad_weight", "and that of the weight", wants=RESULTS[2:3]),
    Property("grad_bias", "and that of the bias", wants=RESULTS[3:4], features=("bias",)),
)

_DTYPES = tuple(
    Property(dtype, f"all results are right in {dtype}", dtype=dtype, needs_gpu=dtype == "tf32")
    for dtype in DTYPES
)

_PARAMETERS = (
    Property("stride", "right with a stride above 1", features=("stride",)),
    Property("padding", "right with padding", features=("padding",)),
    Property("output_padding", "right with output padding", features=("stride", "output_padding")),
    Property("dilation", "right with dilation", features=("dilation",)),
    Property("groups", "right with groups", features=("groups",)),
    Property("bias", "right with a bias", features=("bias",)),
    Property(
        "asymmetric",
        "right where the three axes differ in kernel size and parameters",
        features=("asymmetric",),
        mixes=PARAMETERS,
    ),
)

_DATA = (
    Property("batch", "right with several samples", features=("batch",)),
    Property("channels_last", "right on channels_last_3d tensors", features=("channels_last",)),
    Property(
        "non_contiguous",
        "right on slices, and on a grad_output that is expanded from one element",
        placements=("strided", "expanded"),
    ),
    Property(
        "special_values",
        "NaN, infinities, signed zeros, subnormals and overflow appear where they must",
        features=("special_values",),
    ),
    Property(
        "all_together", "right with everything that is right alone", mixes=ALL, all_dtypes=True
    ),
)

_CONDUCT = (
    Property(
        "repeatable",
        "a second run from the same state of the random generators gives the same bits",
        probe="repeat",
        drawn_with=("long_sums",),
        mixes=ALL,
        lane="normal",
        needs_right_output=False,
    ),
    Property(
        "random_state",
        "so does one from another state",
        probe="random_state",
        drawn_with=("long_sums",),
        mixes=ALL,
        lane="normal",
        needs_right_output=False,
    ),
    Property(
        "batch_independence",
        "a sample's output and grad_input have the same bits alone and beside any other samples",
        probe="batch",
        features=("batch",),
        drawn_with=("long_sums",),
        mixes=ALL,
        lane="normal",
        needs_right_output=False,
    ),
    Property(
        "own_results",
        "results come from this call's data, stay as they are, and share no memory with anything",
        probe="reuse",
        mixes=ALL,
        all_dtypes=True,
    ),
    Property(
        "streams",
        "right on a side stream whose data come late",
        probe="stream",
        mixes=ALL,
        all_dtypes=True,
        needs_gpu=True,
    ),
    Property(
        "native_op",
        "PyTorch's own convolutions are not called, watched or not",
        probe="unwatched",
        mixes=ALL,
        all_dtypes=True,
        needs_right_output=False,
    ),
)

PROPERTIES = (*_RESULTS, *_DTYPES, *_PARAMETERS, *_DATA, *_CONDUCT)

# Rows that every run of the rows above has a say in.
EVERY_RUN = {
    "out_of_bounds": "nothing is written outside of what was allocated",
    "inputs_unchanged": "input, weight, bias and grad_output are not written to",
    "all_written": "every element of a result is written",
}

ROWS = (BUILDS, *(property.name for property in PROPERTIES), SPEED, *EVERY_RUN)

# What the figures of speed are measured on, where no cases were given.
SPEED_CASES = {
    "cpu": Case(
        n=2,
        in_channels=16,
        out_channels=16,
        input_size=(8, 8, 8),
        kernel_size=(3, 3, 3),
        stride=(2, 2, 2),
        padding=(1, 1, 1),
        output_padding=(1, 1, 1),
    ),
    "cuda": Case(
        n=8,
        in_channels=64,
        out_channels=32,
        input_size=(16, 16, 16),
        kernel_size=(3, 3, 3),
        stride=(2, 2, 2),
        padding=(1, 1, 1),
        output_padding=(1, 1, 1),
    ),
}
