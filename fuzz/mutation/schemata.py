"""All mutants of the kernel strings in one source, each behind a run-time switch (mutant schemata).

Every change becomes `(mutant == N ? (wrong) : (right))` or `{ if (mutant == N) { wrong } else { right } }`, and changes
nest: `right` holds the switches of the places inside it, `wrong` is plain text, as only one mutant is on at a time.
Mutants whose changes overlap without nesting go to different layers, each a set of libraries of its own.

What is left of a mutant that does not compile (a pointer times an integer) is found by asking the compiler: the `wrong`
texts stand on lines of a file of their own, whose line number is the mutant's number.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convt3d import build
from fuzz import machine
from fuzz.mutation import operators
from fuzz.mutation.kernel_text import MODULES, MUTATED_PARTS
from fuzz.mutation.mutant import EXPRESSION, Change, Edit, KernelMutant

# Less optimised than the emulator's own build, as every expression has a switch in it. What is undefined in C++ must do
# what the hardware does, else the compiler may prove that a mutant is the original: a loop that runs past the end of
# an array, an overflow.
FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"),
    *("-fwrapv", "-fno-aggressive-loop-optimizations", "-fno-strict-aliasing"),
)
# The pseudo file of the `wrong` texts, in #line directives and in the compiler's messages.
WRONG_FILE = "mutant"
OFF = 0

# Files by part and target, as launch.use_libraries takes them.
Libraries = Mapping[tuple[str, str], Path]

_SWITCH = """
#include <cmath>
#include <cstdlib>
#include <type_traits>
namespace convt3d {
// The number of the one that is on; 0: none. A process under a sanitizer is told by its environment.
static int mutant = std::getenv("CONVT3D_MUTANT") ? std::atoi(std::getenv("CONVT3D_MUTANT")) : 0;
"""
_SETTER = """
extern "C" __attribute__((visibility("default"))) void convt3d_set_mutant(int number) {
  convt3d::mutant = number;
}
"""


@dataclass(frozen=True)
class Layer:
    """Mutants that live in one set of sources.

    Args:
        numbers: name of a mutant -> what the switch is set to for it.
        changes: file -> its changes, with the numbers of their mutants.
        helpers: C++ definitions that the changes use.
    """

    numbers: Mapping[str, int]
    changes: Mapping[str, Sequence[tuple[int, Change]]]
    helpers: str

    def source(self, part: str, target: str = "host") -> str:
        """The translation unit of a part for a target of build.TARGETS, with every mutant of its strings in it."""
        unit = build.translation_unit(part, target)
        for file in sorted(files(part)):
            plain = build._with_line_directive(MODULES[file])
            if unit.count(plain) != 1:
                raise RuntimeError(f"{file} stands {unit.count(plain)} times in {part}, not once")
            mutated = _render_module(plain, file, self.changes.get(file, ()))
            if file == "params.py":
                mutated = f"{_SWITCH}{self.helpers}}}\n{mutated}"
            unit = unit.replace(plain, mutated)
        return unit + _SETTER

    def touches(self, part: str) -> bool:
        """Whether a part's source has any mutant in it."""
        return any(self.changes.get(file) for file in files(part))


def layers(mutants: Sequence[KernelMutant]) -> list[Layer]:
    """Spreads mutants over as few layers as a simple search finds, numbered from 1 in each.

    Raises:
        ValueError: an Edit whose text does not occur exactly once, or two mutants of one name.
    """
    names = [mutant.name for mutant in mutants]
    if repeated := {name for name in names if names.count(name) > 1} if len(names) < 500 else set():
        raise ValueError(f"mutants of one name: {sorted(repeated)}")
    spread: list[list[tuple[KernelMutant, list[Change]]]] = []
    for mutant in mutants:
        changes = [locate(edit, mutant.name) for edit in mutant.edits]
        for layer in spread:
            if not any(_cross(a, b) for _, others in layer for a in others for b in changes):
                layer.append((mutant, changes))
                break
        else:
            spread.append([(mutant, changes)])
    return [_layer(members) for members in spread]


def locate(edit: Edit | Change, name: str) -> Change:
    """Returns an edit by its place.

    Raises:
        ValueError: its text does not occur exactly once; the message starts with `name`.
    """
    if isinstance(edit, Change):
        return edit
    if edit.file not in MODULES:
        raise ValueError(f"{name}: file={edit.file!r}, but must be one of {tuple(MODULES)}")
    source = MODULES[edit.file].SOURCE
    start, text = 0, source
    if edit.within:
        start, text = _find_once(source, edit.within, edit.file, name), edit.within
    start += _find_once(text, edit.right, "`within`" if edit.within else edit.file, name)
    return Change(edit.file, start, start + len(edit.right), edit.wrong, edit.kind)


def without_stillborn(
    layer: Layer, parts: Sequence[str] = MUTATED_PARTS
) -> tuple[Layer, list[str]]:
    """Returns the layer without the mutants that do not compile, and their names.

    Asks the compiler, but remembers its answer with the libraries.

    Raises:
        RuntimeError: something else in the sources does not compile.
    """
    parts = [part for part in parts if layer.touches(part)]
    key = repr((FLAGS, machine.compiler(), [layer.source(part) for part in parts]))
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    memory = build.cache_directory() / f"convt3d_mutants_{digest}.txt"
    if memory.exists():
        names = memory.read_text().splitlines()
        return _drop(layer, names), names
    stillborn: set[int] = set()
    names_of = {number: name for name, number in layer.numbers.items()}
    while True:
        rest = _drop(layer, [names_of[number] for number in stillborn])
        with concurrent.futures.ThreadPoolExecutor(machine.usable_cores()) as pool:
            found = set().union(*pool.map(_find_stillborn, map(rest.source, parts)))
        if not found:
            break
        stillborn |= found
    names = [names_of[number] for number in sorted(stillborn)]
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text("".join(f"{name}\n" for name in names))
    return rest, names


def compiled(
    layer: Layer, parts: Sequence[str] = MUTATED_PARTS, targets: Iterable[str] = ("host",)
) -> Libraries:
    """Returns the libraries of a layer that has no stillborn mutants, compiling what no earlier run has.

    A part without a mutant of the layer in it is missing.

    Args:
        layer: the layer.
        parts: of MUTATED_PARTS.
        targets: "host" and modes of sanitizers.

    Raises:
        RuntimeError: as for convt3d.build.library.
    """

    def compile_one(key: tuple[str, str]) -> Path:
        part, target = key
        flags = FLAGS if target == "host" else build.SANITIZER_FLAGS[target]
        return build.compiled(part, layer.source(part, target), target, [*flags])

    keys = [(part, target) for target in targets for part in parts if layer.touches(part)]
    with concurrent.futures.ThreadPoolExecutor(machine.usable_cores()) as pool:
        return dict(zip(keys, pool.map(compile_one, keys)))


def use(libraries: Libraries, number: int) -> None:
    """Has the op call these libraries, one mutant on; with OFF none. Parts that are missing run as users have them.

    Those for the host are loaded here, so that the forks of a process that has called this share them. A process under
    a sanitizer, which loads the others, is told the number by its environment.
    """
    from convt3d import launch

    launch.use_libraries(libraries)
    os.environ["CONVT3D_MUTANT"] = str(number)
    for (_, target), file in libraries.items():
        if target == "host":
            ctypes.CDLL(str(file)).convt3d_set_mutant(ctypes.c_int(number))


def render(text: str, changes: Iterable[tuple[int, Change]], path: str, first_line: int) -> str:
    """Returns the text with a switch at every change.

    Args:
        text: a SOURCE.
        changes: the changes in it with the numbers of their mutants; two nest or lie apart.
        path, first_line: where the text stands, for #line directives.
    """
    # Outer before inner; of equal ones the order does not matter.
    ordered = sorted(changes, key=lambda item: (item[1].start, -item[1].end, item[0]))
    pieces, end = _render_range(text, ordered, 0, (0, len(text)), path, first_line)
    assert end == len(ordered), "changes cross"
    return "".join(pieces)


def _render_range(
    text: str,
    changes: Sequence[tuple[int, Change]],
    at: int,
    bounds: tuple[int, int],
    path: str,
    first_line: int,
) -> tuple[list[str], int]:
    """Renders a part of the text; returns its pieces and the index of the first change behind it."""
    position, stop = bounds
    pieces: list[str] = []
    while at < len(changes) and changes[at][1].start < stop:
        start, end, kind = changes[at][1].start, changes[at][1].end, changes[at][1].kind
        same = at
        while same < len(changes) and (changes[same][1].start, changes[same][1].end) == (
            start,
            end,
        ):
            same += 1
        inner, after = _render_range(text, changes, same, (start, end), path, first_line)
        back = f'\n#line {first_line + text.count(chr(10), 0, start)} "{path}"\n'
        alternatives = "".join(
            _alternative(number, change, back) for number, change in changes[at:same]
        )
        pieces.append(text[position:start])
        if kind == EXPRESSION:
            pieces += [f"({alternatives}(", *inner, "))"]
        else:
            pieces += [f"{{ {alternatives}{{ ", *inner, " } }"]
        position, at = end, after
    pieces.append(text[position:stop])
    return pieces, at


def _alternative(number: int, change: Change, back: str) -> str:
    there = f'\n#line {number} "{WRONG_FILE}"\n'
    wrong = re.sub(r"//.*|\n", " ", change.wrong)  # one line
    if change.kind == EXPRESSION:
        return f"{there}convt3d::mutant == {number} ? ({wrong}) : {back}"
    return f"{there}if (convt3d::mutant == {number}) {{ {wrong} }} else {back}"


def files(part: str) -> frozenset[str]:
    """The modules of MODULES whose strings a part has."""
    return frozenset(("params.py", "gather.py" if part.startswith("gather") else "weight.py"))


def _render_module(plain: str, file: str, changes: Iterable[tuple[int, Change]]) -> str:
    """The same as `plain`, which is a directive and the module's SOURCE, with switches in it."""
    directive = re.match(r'#line (\d+) "(.*)"', plain)
    assert directive is not None
    # SOURCE starts with the rest of the directive's own line.
    rendered = render(MODULES[file].SOURCE, changes, directive[2], int(directive[1]) - 1)
    return plain[: directive.end()] + rendered


def _layer(members: Sequence[tuple[KernelMutant, Sequence[Change]]]) -> Layer:
    numbers: dict[str, int] = {}
    changes: dict[str, list[tuple[int, Change]]] = {}
    for number, (mutant, own) in enumerate(members, start=OFF + 1):
        numbers[mutant.name] = number
        for change in own:
            changes.setdefault(change.file, []).append((number, change))
    helpers = dict.fromkeys([operators.HELPERS, *(mutant.helpers for mutant, _ in members)])
    return Layer(numbers, changes, "".join(helpers))


def _drop(layer: Layer, names: Iterable[str]) -> Layer:
    gone = {layer.numbers[name] for name in names}
    return Layer(
        {name: number for name, number in layer.numbers.items() if number not in gone},
        {
            file: [item for item in items if item[0] not in gone]
            for file, items in layer.changes.items()
        },
        layer.helpers,
    )


def _find_stillborn(source: str) -> set[int]:
    """Numbers of the mutants that the compiler says do not compile.

    Raises:
        RuntimeError: what does not compile is no mutant.
    """
    command = [build.cxx_compiler(), *FLAGS, "-fsyntax-only", "-xc++", "-"]
    ran = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    found = re.findall(rf"^{WRONG_FILE}:(\d+):\d+: error:", ran.stderr, re.MULTILINE)
    if ran.returncode and not found:
        raise RuntimeError(f"mutants do not compile:\n{build._first_errors(ran.stderr)}")
    return {int(number) for number in found}


def _cross(a: Change, b: Change) -> bool:
    """Whether two changes can not stand in one source: they overlap, and neither lies inside the other."""
    if a.file != b.file or a.end <= b.start or b.end <= a.start:
        return False
    if (a.start, a.end) == (b.start, b.end):
        return a.kind != b.kind
    outer, inner = (a, b) if a.end - a.start > b.end - b.start else (b, a)
    return not (outer.start <= inner.start and inner.end <= outer.end)


def _find_once(text: str, part: str, where: str, name: str) -> int:
    if text.count(part) != 1:
        count = text.count(part)
        raise ValueError(f"{name}: {part!r} occurs {count} times in {where}, but must occur once")
    return text.index(part)
