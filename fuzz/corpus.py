"""Case strings that are kept for ever, each with the reason why.

A corpus file holds one case string a line, directly under the comment that says why it is there.
A comment followed by an empty line belongs to the file.

    # Every output element is bias only: stride 2 with dilation 2 leaves 7 of 8 phases empty.
    f32_i3_k2_s2_d2_bias_int
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fuzz.case import Case, CaseError, format_case, parse_case
from fuzz.plans import check_plans

DIRECTORY = Path(__file__).parent / "corpus"
# Cases on which the native op is known to be wrong; convt3d must pass them.
NATIVE = "native"
REGRESSIONS = "regressions"


class CorpusError(ValueError):
    """A corpus file that cannot be used; the message names file and line."""


class AlreadyKept(CorpusError):
    """The case is in the corpus; the message says where, and why."""


@dataclass(frozen=True)
class Entry:
    """A case of the corpus.

    Args:
        case: the case.
        why: the comment above it, as one line.
        file: name of its file, without ".txt".
        line: line number of the case string, from 1.
    """

    case: Case
    why: str
    file: str
    line: int


def load(path: Path) -> list[Entry]:
    """Reads one corpus file.

    Raises:
        CorpusError: a case string that does not parse or names no plan of convt3d, or one without a
            comment above it.
    """
    entries: list[Entry] = []
    why: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if text.startswith("#"):
            why.append(text.lstrip("#").strip())
            continue
        if text:
            if not any(why):
                raise CorpusError(f"{path}:{number}: no comment above {text} says why it is there")
            try:
                case = parse_case(text)
                check_plans(case)
            except CaseError as error:
                raise CorpusError(f"{path}:{number}: {error}") from error
            entries.append(Entry(case, " ".join(filter(None, why)), path.stem, number))
        why = []
    return entries


def load_all(directory: Path = DIRECTORY) -> list[Entry]:
    """Reads every corpus file of a directory, in the order of their names.

    Raises:
        CorpusError: as `load`, no such directory, or the same case twice.
    """
    if not directory.is_dir():
        raise CorpusError(f"corpus directory {str(directory)!r} does not exist")
    entries: list[Entry] = []
    seen: dict[Case, Entry] = {}
    for path in sorted(directory.glob("*.txt")):
        for entry in load(path):
            first = seen.setdefault(entry.case, entry)
            if first is not entry:
                raise CorpusError(
                    f"{path}:{entry.line}: {entry.case} is in {first.file}.txt:{first.line} already"
                )
            entries.append(entry)
    return entries


def keep(
    case: Case,
    why: str,
    file: str = REGRESSIONS,
    directory: Path = DIRECTORY,
    may_create: bool = False,
) -> Path:
    """Appends a case with its reason to a corpus file.

    Args:
        case: the case.
        why: the reason, one line or several.
        file: name of the file, without ".txt".
        directory: where the corpus is.
        may_create: the file need not be there; regressions and native never need to.

    Returns:
        The file's path.

    Raises:
        AlreadyKept: the case is in the corpus.
        CorpusError: an empty reason, a file name that is not a plain word or not known, or a corpus
            that cannot be read.
        CaseError: a plan that convt3d does not have.
    """
    check_plans(case)
    lines = [line.strip() for line in why.splitlines() if line.strip()]
    if not lines:
        raise CorpusError("the reason is empty, but must say why the case is worth keeping")
    if not why.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in why):
        raise CorpusError(f"the reason is {why!r}, but must be text that UTF-8 can hold")
    if not file.replace("_", "").replace("-", "").isalnum():
        raise CorpusError(f"file={file!r}, but must be a plain name such as {REGRESSIONS!r}")
    for entry in load_all(directory):
        if entry.case == case:
            raise AlreadyKept(f"{case} is in {entry.file}.txt:{entry.line} already: {entry.why}")
    path = directory / f"{file}.txt"
    known = sorted({REGRESSIONS, NATIVE, *(path.stem for path in directory.glob("*.txt"))})
    if file not in known and not may_create:
        raise CorpusError(
            f"file={file!r}, but must be one of {', '.join(known)}; --new-file makes another one"
        )
    append(path, lines, case)
    return path


def append(path: Path, comment: list[str], case: Case) -> None:
    """Appends a case under its comment to a file of case strings, without looking at the rest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_started = path.exists() and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" if is_started else "")
        file.writelines(f"# {line}".rstrip() + "\n" for line in comment)
        file.write(format_case(case) + "\n")
