"""How many instruction words a compiled TPU program issues, read from libtpu's dump of its final schedule.

A TPU core issues one bundle a cycle where nothing stalls. Loops of a compiled program have trip counts that are known,
so the sum over all bundles, each as often as its loops run, is a lower bound of the cycles: waiting for memory, for
transfers and for results in flight is not in it.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

# A bundle: address, what begins there, loop depth in ">", its instructions.
_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(?P<mark>[A-Z]{2})?\s*:(?P<depth>[ >]*)\{(?P<code>.*)")
_BRANCH = re.compile(r"sbr\.rel \(!?%(?P<predicate>\w+)\) target = \$region(?P<region>\d+)")
_DELAY = 4  # bundles behind a branch that still belong to the loop
PIPELINE_ENDS = 2  # turns of a pipelined loop that only read the first block or write the last
_MATRIX = re.compile(r"= (vmatmul|vmatprep|vmatpush|vlatch|vdwg)\w*")
_SPILL = re.compile(r"vst \[vmem:\[#allocation\d+_spill")


@dataclasses.dataclass(frozen=True)
class Loop:
    """Bundles `first` to `last`, run `trips` times; None where the dump does not tell."""

    first: int
    last: int
    depth: int
    trips: int | None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What was read from one operation's schedule.

    Attributes:
      bundles: of the program text.
      cycles: bundles issued, loops included.
      loops: depth, bundles and trips of each.
      unknown_trips: loops counted once because their trips are not in the dump.
      matrix: matrix unit instructions in the text, by kind.
      spills: stores of vector registers for want of registers, in the text.
    """

    bundles: int
    cycles: int
    loops: tuple[tuple[int, int, int | None], ...]
    unknown_trips: int
    matrix: dict[str, int]
    spills: int


def read(text: str) -> Schedule:
    """The schedule in the text of a `final_bundles` file."""
    lines = [match for match in map(_BUNDLE.match, text.splitlines()) if match]
    code = [line["code"] for line in lines]
    times = [1] * len(lines)
    loops = _loops(lines, code)
    for loop in loops:
        for i in range(loop.first, loop.last + 1):
            times[i] *= loop.trips or 1
    return Schedule(
        bundles=len(lines),
        cycles=sum(times),
        loops=tuple((loop.depth, loop.last - loop.first + 1, loop.trips) for loop in loops),
        unknown_trips=sum(loop.trips is None for loop in loops),
        matrix=dict(collections.Counter(kind for words in code for kind in _MATRIX.findall(words))),
        spills=sum(len(_SPILL.findall(words)) for words in code),
    )


def read_dump(folder: Path) -> dict[str, Schedule]:
    """The schedule of every operation of the program that was dumped last, by its name."""
    found = {}
    for path in sorted(folder.glob("*final_bundles.txt")):
        name = re.sub(r"^\d+-", "", path.name)
        if "schedule-analysis" not in name and not name.startswith(("TLP", "<")):
            found[re.sub(r"-\d+-final_bundles\.txt$", "", name)] = read(path.read_text(errors="replace"))
    return found


def _loops(lines: Sequence[re.Match[str]], code: Sequence[str]) -> list[Loop]:
    """Loops by their branch back to a region that began before."""
    heads: dict[str, int] = {}
    found = []
    for i, (line, words) in enumerate(zip(lines, code, strict=True)):
        if line["mark"] == "LB":
            heads |= dict.fromkeys(re.findall(r"Start region (\d+)", words), i)
        branch = _BRANCH.search(words)
        if branch and heads.get(branch["region"], i + 1) <= i:
            first, last = heads[branch["region"]], min(i + _DELAY, len(lines) - 1)
            trips = _trips(code, first, last, branch["predicate"])
            found.append(Loop(first, last, lines[first]["depth"].count(">"), trips))
    return found


def _trips(code: Sequence[str], first: int, last: int, predicate: str) -> int | None:
    """Of a loop that counts up to a constant, without the turns in which only transfers begin or end."""
    body = "\n".join(code[first : last + 1])
    exit_test = re.search(
        rf"%{predicate} = scmp\.ge\.s32\.totalorder (?:\(.*?\), )?%(\w+), (\d+) /\* loop exit test", body
    )
    if exit_test is None:
        return None
    counter, bound = exit_test[1], int(exit_test[2])
    added = re.search(rf"%{counter} = sadd\.s32 (\d+), %(\w+)", body)
    step = int(added[1]) if added else 1
    start = _start("\n".join(code[: last + 1]), added[2]) if added else 0
    ends = PIPELINE_ENDS if "iteration index, stage" in body else 0
    return max(1, -(-(bound - start) // step) - ends)


def _start(code: str, counter: str) -> int:
    """What a loop's counter is before the first turn: a constant, else taken as 0."""
    phi = re.search(rf"%{counter} = sphi %(\w+),", code)
    value = re.search(rf"%{phi[1]} = smov (\d+)", code) if phi else None
    return int(value[1]) if value else 0
