"""What a soak does, drawn from its seed before it begins: the same seed gives the same schedule.

What comes over a task is written beside the task. What comes over the whole host is tied to how
many tasks have ended, not to the clock, so that it comes at the same place on a slower machine.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.fakes import hostile_crush
from tests.faults.engine import Act, When
from tests.harness.proxy import Fault
from tests.harness.proxy import Kind as Network
from tests.image import poison
from tests.image.victoria_stand_in import find_directives

LONG_TIMEOUT_S = 900  # a time limit that no task of a soak reaches
SHORT_TIMEOUT_S = 5  # long enough for a container to leave its start mark, on a busy machine
REFUSED = "Error: the fault engine refuses"
UNREACHABLE = "Error: unable to connect to Podman socket: the fault engine says so"
"""By which an engine of either kind counts as silent: nothing is known of its containers."""


class Kind(str, Enum):
    """What a task does, or has done to it."""

    SUCCEED = "succeed"
    FAIL = "fail"
    PRINT = "print much"
    CARRY_FILES = "carry files"
    TIME_OUT = "time out"
    TIME_OUT_STUBBORN = "time out, ignoring TERM"
    CANCEL_EARLY = "be cancelled before it starts"
    CANCEL_RUNNING = "be cancelled while it runs"
    CANCEL_STUBBORN = "be cancelled, ignoring TERM"
    CANCEL_AT_END = "be cancelled as it ends"
    REMOVED = "have its container removed"
    EAT_MEMORY = "eat memory"
    POISON = "poison the shared home"
    SPOIL = "spoil Crush's database"
    POISONED = "find something in the way of its folder"
    FOREIGN_NAME = "meet a stranger of its container's name"


class Upset(str, Enum):
    """What comes over the whole host."""

    KILL_RUNNER = "kill -9 of the runner"
    TERM_RUNNER = "TERM to the runner"
    KILL_ORCHESTRATOR = "kill -9 of the orchestrator"
    REFUSE = "connections refused"
    UNTRUSTED = "certificate of a stranger"
    EXPIRED = "certificate expired"
    JOURNAL = "kill at a commit of the journal"
    ENGINE = "fault of an engine call for no task"


@dataclass(frozen=True)
class EngineFault:
    """One thing that goes wrong with one call of the engine."""

    call: str
    act: Act
    when: When
    seconds: float = 0.0  # how long a call is blocked
    message: str = REFUSED

    @property
    def keeps_from_starting(self) -> bool:
        """Whether it keeps a container from starting, whatever the engine says."""
        refuses = self.act is Act.FAIL and self.message == REFUSED
        is_early = self.call in {"run", "start"} and self.when is When.BEFORE
        return refuses and (self.call == "create" or is_early)


@dataclass(frozen=True)
class TaskPlan:
    """One task; moments are seconds after its start mark (CANCEL_EARLY: its creation)."""

    number: int
    kind: Kind
    prompt: str
    timeout_s: int = LONG_TIMEOUT_S
    exit_code: int = 0
    files: tuple[int, ...] = ()  # which of the uploaded files it carries
    program: str = ""  # which of PROGRAMS it carries as well, and runs
    in_the_way: tuple[str, str] = ("", "")  # of its folder: below it or in its place, and the form
    strikes_after_s: float | None = None  # when it is cancelled, or its container removed
    faults: tuple[EngineFault, ...] = ()

    @property
    def output(self) -> str:
        """What it prints if nothing ends it early."""
        printed = {
            "print": lambda value: ("x" * 99 + "\n") * (int(value) // 100),
            "print-line": lambda value: f"{value}\n",
        }
        return "".join(printed[name](value) for name, value in self._directives if name in printed)

    @property
    def artifacts(self) -> dict[str, bytes]:
        """What it leaves if nothing ends it early."""
        named = [value.partition(" ") for name, value in self._directives if name == "artifact"]
        return {path: text.encode() for path, _, text in named}

    @property
    def _directives(self) -> list[tuple[str, str]]:
        return find_directives(self.prompt)


@dataclass(frozen=True)
class UpsetPlan:
    """Something that happens so many seconds after so many tasks have ended."""

    after_ended: int
    delay_s: float
    upset: Upset
    seconds: float = 0.0  # how long it lasts, or how long the runner or the orchestrator stays away
    commit: int = 0  # the runner is killed at this commit, counted from then on
    is_before: bool = False
    fault: EngineFault | None = None


@dataclass(frozen=True)
class Schedule:
    """All of it."""

    seed: int
    tasks: tuple[TaskPlan, ...]
    upsets: tuple[UpsetPlan, ...]
    has_memory_limit: bool  # even seeds have one


FILE_SIZES = (0, 1, 4096, 70_000, 300_000, 1_500_000)
PROGRAMS = tuple(Path(str(module.__file__)) for module in (poison, hostile_crush))
"""What hostile tasks carry and run."""


@dataclass(frozen=True)
class _Shape:
    """What all tasks of a kind have in common."""

    weight: int
    prompt: str
    timeout_s: int = LONG_TIMEOUT_S
    strikes: tuple[float, float] | None = None  # the earliest and the latest moment of a strike


_WORK = "[sleep {seconds}][print-line task {number}]"
_MAKE = "[artifact {number}.txt of task {number}][artifact more/{number}.txt more of it]" + _WORK
"""Not where the home is poisoned: there the task itself may be unable to make them."""
_SHAPES = {
    Kind.SUCCEED: _Shape(30, _MAKE),
    Kind.FAIL: _Shape(12, _MAKE + "[fail {exit_code}]"),
    Kind.PRINT: _Shape(8, "[print 3000000]" + _MAKE),
    Kind.CARRY_FILES: _Shape(16, _WORK),
    Kind.TIME_OUT: _Shape(6, "[hang]", SHORT_TIMEOUT_S),
    Kind.TIME_OUT_STUBBORN: _Shape(3, "[ignore-term][hang]", SHORT_TIMEOUT_S),
    Kind.CANCEL_EARLY: _Shape(7, _WORK, strikes=(0.0, 1.5)),
    Kind.CANCEL_RUNNING: _Shape(6, "[hang]", strikes=(0.0, 1.0)),
    Kind.CANCEL_STUBBORN: _Shape(2, "[ignore-term][hang]", strikes=(0.0, 1.0)),
    Kind.CANCEL_AT_END: _Shape(5, "[sleep 1]" + _WORK, strikes=(0.4, 1.4)),
    Kind.REMOVED: _Shape(2, "[hang]", strikes=(0.0, 1.0)),
    Kind.EAT_MEMORY: _Shape(4, "[eat-memory 400]"),
    Kind.POISON: _Shape(5, "[run {program} {place} {form}]" + _WORK),
    Kind.SPOIL: _Shape(5, "[run {program} {form}]" + _WORK),
    Kind.POISONED: _Shape(4, _WORK),
    Kind.FOREIGN_NAME: _Shape(3, _WORK),
}
_PROGRAM_OF = {Kind.POISON: "poison.py", Kind.SPOIL: "hostile_crush.py"}
_FORMS_OF = {Kind.SPOIL: (*hostile_crush.SCHEMAS, *hostile_crush.OTHERS)}  # else poison.FORMS
_PLACES_OF = {
    Kind.POISON: ("tasks", "tasks/OWN", "tasks/OWN/files", ".crush", ".crush"),
    Kind.POISONED: ("", "files"),
}
PREPARED = frozenset({Kind.POISONED, Kind.FOREIGN_NAME})
"""Kinds whose host is prepared before the task may start."""

_FAULTY_SHARE = 0.3  # how many tasks meet a fault of the engine; some meet two
_UPSETS_PER_100_TASKS = {
    Upset.KILL_RUNNER: 5,
    Upset.TERM_RUNNER: 3,
    Upset.KILL_ORCHESTRATOR: 2,
    Upset.REFUSE: 2,
    Upset.UNTRUSTED: 1,
    Upset.EXPIRED: 1,
    Upset.JOURNAL: 5,
    Upset.ENGINE: 3,
}
_FARTHEST_COMMIT = 20  # some two or three tasks' lives away: so every kind of commit is met

NETWORK_FAULTS = (
    *2 * (Fault(Network.DROP_REQUEST),),
    *3 * (Fault(Network.DROP_ANSWER),),
    *2 * (Fault(Network.HALF_BODY),),
    *(Fault(Network.DELAY, seconds=seconds) for seconds in (0.3, 1.5)),
    *(Fault(Network.STATUS, status=status, retry_after="1") for status in (429, 503)),
    Fault(Network.STATUS, status=500),
    *(Fault(Network.HTML, status=status) for status in (200, 401, 404, 502)),
    *(Fault(Network.HOLD_REQUEST), Fault(Network.HOLD_ANSWER)),
)
NETWORK_FAULT_SHARE = 0.09  # how many requests of the runner meet one of these, by chance


def draw(seed: int, tasks: int, *, knows_two_steps: bool = True) -> Schedule:
    """Draw the schedule of a seed.

    With podman 4 a container that has a memory limit starts in two steps, and meets its faults
    there; all others in one.
    """
    has_memory_limit = seed % 2 == 0
    kinds = [kind for kind in Kind if has_memory_limit or kind is not Kind.EAT_MEMORY]
    starting = ("create", "start") if has_memory_limit and knows_two_steps else ("run", "run")
    dice = random.Random(f"kinds {seed}")  # noqa: S311 - to be the same again
    drawn = dice.choices(kinds, [_SHAPES[kind].weight for kind in kinds], k=tasks)
    return Schedule(
        seed,
        tuple(_task(seed, number, kind, starting) for number, kind in enumerate(drawn)),
        tuple(sorted(_upsets(seed, tasks), key=lambda plan: (plan.after_ended, plan.delay_s))),
        has_memory_limit,
    )


def _task(seed: int, number: int, kind: Kind, starting: tuple[str, str]) -> TaskPlan:
    dice = random.Random(f"task {seed} {number}")  # noqa: S311 - to be the same again
    shape, files = _SHAPES[kind], list[int]()
    code = dice.choice((1, 2, 3, 42, 126, 127, 137, 143, 255)) if kind is Kind.FAIL else 0
    seconds = round(dice.choice((0.0, 0.0, 0.2, 1.0)) * dice.random(), 2)
    place, form = (
        dice.choice(_PLACES_OF.get(kind, ("",))),
        dice.choice(_FORMS_OF.get(kind, poison.FORMS)),
    )
    program = _PROGRAM_OF.get(kind, "")
    values = {"number": number, "exit_code": code, "program": program, "place": place, "form": form}
    if kind in {Kind.CARRY_FILES, Kind.POISONED}:
        files = dice.sample(range(len(FILE_SIZES)), dice.randint(1, 3))
    return TaskPlan(
        number,
        kind,
        shape.prompt.format(seconds=seconds, **values),
        shape.timeout_s,
        code,
        tuple(files),
        program,
        (place, form) if kind is Kind.POISONED else ("", ""),
        round(dice.uniform(*shape.strikes), 2) if shape.strikes else None,
        _faults(dice, kind, starting),
    )


def _faults(dice: random.Random, kind: Kind, starting: tuple[str, str]) -> tuple[EngineFault, ...]:
    calls = (*starting, "inspect", "inspect", "rm", "logs", "stop")
    faults = []
    while dice.random() < _FAULTY_SHARE:
        call = dice.choice(calls)
        act = dice.choice((Act.BLOCK, Act.BLOCK, Act.FAIL, Act.FAIL, Act.HANG, Act.KILL))
        moments = (When.BEFORE, When.AFTER, *((When.DURING,) if act is Act.KILL else ()))
        # A task that never starts cannot have its container removed.
        message = UNREACHABLE if dice.random() < 0.5 or kind is Kind.REMOVED else REFUSED
        seconds = round(dice.uniform(0.3, 4.0), 2)
        faults.append(EngineFault(call, act, dice.choice(moments), seconds, message))
    return tuple(faults[:2])


def _upsets(seed: int, tasks: int) -> Iterator[UpsetPlan]:
    dice = random.Random(f"upsets {seed}")  # noqa: S311 - to be the same again
    for upset, per_100 in _UPSETS_PER_100_TASKS.items():
        for _ in range(max(1, round(tasks * per_100 / 100))):
            commit = dice.randint(1, _FARTHEST_COMMIT) if upset is Upset.JOURNAL else 0
            fault = EngineFault(
                dice.choice(("ps", "info", "image")),
                dice.choice((Act.BLOCK, Act.HANG, Act.KILL)),
                dice.choice((When.BEFORE, When.AFTER)),
                round(dice.uniform(0.3, 3.0), 2),
            )
            yield UpsetPlan(
                after_ended=dice.randrange(max(1, tasks - 5)),
                delay_s=round(dice.uniform(0, 1), 2),
                upset=upset,
                seconds=round(dice.uniform(0.2, 3.0), 2),
                commit=commit,
                is_before=dice.random() < 0.5,
                fault=fault if upset is Upset.ENGINE else None,
            )
