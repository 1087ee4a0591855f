"""From a sanitizer's report, pages long, to one line: what happened, at which line of which kernel, to which tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# What the emulator itself is made of; the line that matters called it.
_MACHINE = "convt3d/emulator/"
# The longest message that is made of a report which is in no known form.
_TAIL_CHARACTERS = 600

_FRAME = re.compile(
    r"^ +#\d+ (?:0x[0-9a-f]+ in )?(?P<function>.+?) (?:\./)?(?P<file>[^\s:]+):(?P<line>\d+)(?::\d+)?(?: \(.*\))?$"
)
_ASAN = re.compile(r"ERROR: AddressSanitizer: (?P<kind>[\w-]+)(?:.*?(?P<address>0x[0-9a-f]+))?")
_ASAN_ACCESS = re.compile(r"^(?P<what>READ|WRITE) of size (?P<size>\d+)", re.MULTILINE)
_SIGNAL = re.compile(r"caused by a (?P<what>READ|WRITE) memory access")
_UBSAN = re.compile(r"^(?P<file>\S+?):(?P<line>\d+)(?::\d+)?: runtime error: (?P<what>.*)$", re.M)
_TSAN = re.compile(r"(?:WARNING|ERROR): ThreadSanitizer: (?P<kind>[\w -]+?) (?:\(|on )")
_TSAN_ACCESS = re.compile(
    r"^  (?P<what>(?:Previous )?(?:[Aa]tomic )?(?:[Rr]ead|[Ww]rite) of size \d+) at (?P<address>0x[0-9a-f]+)"
    r" by (?:thread )?(?P<thread>\w+)"
)
# The name that watch.py gives to what makes the copies of a thread.
_COPY_ENGINE = re.compile(r"^  Thread (?P<thread>\w+) 'asynchronous copy'", re.MULTILINE)


class Frame(NamedTuple):
    """A place in a program. An unknown function is ""."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" in {self.function}" if self.function else "")


def one_line(mode: str, report: str, tensors: Mapping[str, range]) -> str | None:
    """Returns what a report says, starting with the sanitizer's name; None if it is no report.

    Args:
        mode: "asan" or "tsan".
        report: what the process printed.
        tensors: name -> addresses of its bytes, while the process ran.
    """
    if mode == "tsan":
        return _of_tsan(report, tensors)
    return _of_asan(report, tensors) or _of_ubsan(report)


def tail(report: str) -> str:
    """Returns the end of what a process printed, for a message."""
    return report.strip()[-_TAIL_CHARACTERS:]


def _of_asan(report: str, tensors: Mapping[str, range]) -> str | None:
    found = _ASAN.search(report)
    if found is None:
        return None
    access, signal = _ASAN_ACCESS.search(report), _SIGNAL.search(report)
    what = ""
    if access:
        what = f": {access['what']} of size {access['size']}"
    elif signal:
        what = f": {signal['what']}"
    where = _place(_frames(report[found.start() :].splitlines()[1:]))
    address = int(found["address"], 16) if found["address"] else None
    near = "" if address is None else _near(address, tensors)
    if not near and found["kind"] == "use-after-poison":
        near = "outside of the block's shared memory"  # nothing else is poisoned but tensors' ends
    return f"asan: {found['kind']}{what}{where}" + (f", {near}" if near else "")


def _of_ubsan(report: str) -> str | None:
    found = _UBSAN.search(report)
    if found is None:
        return None
    frames = _frames(report[found.end() :].splitlines()[1:])
    where = _place([Frame("", found["file"], int(found["line"])), *frames])
    return f"ubsan: {found['what']}{where}"


def _of_tsan(report: str, tensors: Mapping[str, range]) -> str | None:
    found = _TSAN.search(report)
    if found is None:
        return None
    lines = report[found.start() :].splitlines()[1:]
    engines = _COPY_ENGINE.findall(report)
    accesses = []
    for number, line in enumerate(lines):
        access = _TSAN_ACCESS.match(line)
        if access:
            what = access["what"][0].lower() + access["what"][1:]
            what += " by an asynchronous copy" * (access["thread"] in engines)
            near = _near(int(access["address"], 16), tensors)
            accesses.append(what + _place(_frames(lines[number + 1 :])))
    if not accesses:
        return f"tsan: {found['kind']}{_place(_frames(lines))}"
    return f"tsan: {found['kind']}: {', '.join(accesses[:2])}" + (f", {near}" if near else "")


def _frames(lines: Sequence[str]) -> list[Frame]:
    """Returns the first stack in the lines; what stands before it is skipped."""
    frames: list[Frame] = []
    for line in lines:
        found = _FRAME.match(line)
        if found:
            name = _name(found["function"])
            frames.append(Frame(name, found["file"], int(found["line"])))
        elif frames and not re.match(r" +#\d+ ", line):
            break
    return frames


def _place(frames: Sequence[Frame]) -> str:
    """Returns " at FILE:LINE in KERNEL": the innermost line of a kernel, which is no line of the emulator."""
    of_kernels = [f for f in frames if f.file.endswith(".py") and _MACHINE not in f.file]
    if not (of_kernels or frames):
        return ""
    place = (of_kernels or frames)[0]
    kernel = next((f.function for f in of_kernels if f.function.endswith("_kernel")), "")
    return f" at {place._replace(function=kernel or place.function)}"


def _name(signature: str) -> str:
    """Returns the bare name of a demangled function: f of `void n::f<true, int>(n::P)`."""
    plain = signature
    for brackets in (r"<[^<>]*>", r"\([^()]*\)"):
        while (shorter := re.sub(brackets, "", plain)) != plain:
            plain = shorter
    return plain.split(" const")[0].split("::")[-1].split(" ")[-1]


def _near(address: int, tensors: Mapping[str, range]) -> str:
    """Returns where an address lies by the nearest tensor; "" if none is near."""
    distance_of = {
        name: max(span.start - address, address - span.stop + 1, 0)
        for name, span in tensors.items()
    }
    name = min(distance_of, key=distance_of.__getitem__, default="")
    if not name or distance_of[name] > 4096:
        return ""
    span = tensors[name]
    if address in span:
        return f"byte {address - span.start} of {name}"
    if address >= span.stop:
        return f"{address - span.stop} bytes behind the {len(span)} of {name}"
    return f"{span.start - address} bytes before {name}"
