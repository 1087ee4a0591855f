"""Short forms of Edit, and a text that several bugs change."""

from __future__ import annotations

from fuzz.mutation.mutant import STATEMENTS, Edit

# What the tiled gather kernel stages of the source.
STAGED_SOURCE = """inside ? to_acc(from[(first_k + k) * static_cast<index_t>(p.source.channel)])
                         : acc_t(0)"""


def in_params(right: str, wrong: str, within: str = "") -> Edit:
    return Edit("params.py", right, wrong, within=within)


def in_gather(right: str, wrong: str, within: str = "") -> Edit:
    return Edit("gather.py", right, wrong, within=within)


def in_weight(right: str, wrong: str, within: str = "") -> Edit:
    return Edit("weight.py", right, wrong, within=within)


def gather_statements(right: str, wrong: str, within: str = "") -> Edit:
    return Edit("gather.py", right, wrong, STATEMENTS, within)


def weight_statements(right: str, wrong: str, within: str = "") -> Edit:
    return Edit("weight.py", right, wrong, STATEMENTS, within)
