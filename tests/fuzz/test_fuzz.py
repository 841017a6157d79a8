"""The fuzzer: damaged files, odd options and odd calls give a clear message or the same result.

It takes a minute or two, always with the same inputs. With `SPCL_FUZZ_MINUTES=30` it goes on with
random inputs for that time, and prints how many were tried and what came of them.
"""

import functools
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

for needed in ("hypothesis", "papermill"):
    pytest.importorskip(needed)

# ruff: noqa: E402
from attack import CLEAR, VERDICTS, attack, limited_memory, read_sound
from calls import attack_call, odd_calls
from commands import attack_command, make_project, odd_commands, odd_folders, options_of
from damages import damages
from hypothesis import HealthCheck, Phase, configuration, given, seed, settings
from hypothesis.strategies import SearchStrategy
from kinds import bounded, make_kinds, tiny_backbone

from spcl_lib.runs import network, run

MINUTES = float(os.environ.get("SPCL_FUZZ_MINUTES") or 0)


@dataclass(frozen=True)
class Subject:
    """What is attacked: its inputs, and the attack, which gives a verdict and its reason."""

    name: str
    inputs: SearchStrategy
    attack: Callable[[object], tuple[str, str]]
    examples: int  # without the switch


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """All subjects by name: every kind of file, every command, and the library."""
    configuration.set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "build_backbone", tiny_backbone())
        patch.setattr(run, "train", bounded(run.train))
        for name in ("SPCL_DATA", "SPCL_PARENT"):
            patch.delenv(name, raising=False)
        found = [Subject("library", odd_calls(), attack_call, 200)]
        for kind in make_kinds(tmp_path_factory.mktemp("fuzz")):
            read_sound(kind)
            inputs = damages(kind.world.sound[kind.file][0], kind.form)
            found.append(Subject(kind.name, inputs, functools.partial(attack, kind), 16))
        world = make_project(tmp_path_factory.mktemp("project"))
        for command in options_of():
            inputs = odd_commands(command, world.folder)
            work = functools.partial(attack_command, world)
            found.append(Subject(f"command {command}", inputs, work, 16))
        work = functools.partial(attack_command, world)
        found.append(Subject("folders", odd_folders(world.folder), work, 24))
        with limited_memory():
            yield {subject.name: subject for subject in found}


def try_subject(subject, examples, judge, number=None):
    """Attacks a subject with some inputs; without a number always with the same ones."""

    @settings(
        max_examples=examples, derandomize=number is None, deadline=None, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(subject.inputs)
    def work(found):
        judge(found, *subject.attack(found))

    (work if number is None else seed(number)(work))()


@pytest.fixture
def tally(capsys):
    """Counts the verdicts, and keeps an example of each kind of fault; prints them at the end."""
    counts, faults = {}, {}

    def judge(name, found, verdict, reason):
        counts.setdefault(name, Counter())[verdict] += 1
        if verdict != CLEAR:
            faults.setdefault((name, verdict, reason.rpartition(" at ")[2][:80]), []).append(
                f"{reason}\n    input: {str(found)[:600]}"
            )

    yield judge, faults
    total = sum(counts.values(), Counter())
    with capsys.disabled():
        print(f"\n{'':28}{'tried':>9}" + "".join(f"{v:>11}" for v in VERDICTS))
        for name, found in (*counts.items(), ("all", total)):
            print(f"{name:28}{found.total():9}" + "".join(f"{found[v]:11}" for v in VERDICTS))
        for (name, verdict, _), found in faults.items():
            print(
                f"{name}, {verdict}, {len(found)} times, for instance:\n    {min(found, key=len)}"
            )


@pytest.mark.skipif(MINUTES > 0, reason="SPCL_FUZZ_MINUTES: random inputs instead")
def test_no_input_gives_a_traceback_or_another_result_without_a_word(subjects, tally):
    judge, faults = tally
    for subject in subjects.values():
        try_subject(subject, subject.examples, functools.partial(judge, subject.name))
    assert not faults


@pytest.mark.skipif(MINUTES == 0, reason="needs SPCL_FUZZ_MINUTES")
def test_attack_for_some_minutes(subjects, tally):
    judge, faults = tally
    ends = time.monotonic() + 60 * MINUTES
    names = itertools.cycle(subjects)
    while time.monotonic() < ends:
        subject, number = subjects[next(names)], random.SystemRandom().randrange(2**32)
        try_subject(subject, 10, functools.partial(judge, subject.name), number)
    assert not faults
