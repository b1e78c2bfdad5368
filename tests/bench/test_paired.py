"""The harness: order, medians, quotients, the gate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tttunet.bench.paired import (
    GateFailed,
    PairedTimes,
    Spread,
    check_agreement,
    run_paired,
    short,
    within,
)


class Clock:
    """Every call of a candidate takes as long as it says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_candidates_take_turns_and_warmups_are_not_counted():
    clock, order = Clock(), []

    def candidate(name, durations):
        def work():
            order.append(name)
            clock.now += next(durations)

        return work

    work = {
        "a": candidate("a", iter([100, 3, 1, 2])),
        "b": candidate("b", itertools.repeat(1)),
    }
    seen = []
    times = run_paired(work, 3, clock=clock, progress=lambda *a: seen.append(a))
    assert order == ["a", "b"] * 4
    assert times.seconds == {"a": [3, 1, 2], "b": [1, 1, 1]}
    assert seen == [(i, 8) for i in range(1, 9)]
    assert times.spread("a") == Spread(2, 1.5, 2.5, 1, 3)


def test_ratios_are_of_the_same_round():
    # The machine becomes ten times slower: the quotients do not notice.
    times = PairedTimes({"slow": [2.0, 20.0, 200.0], "fast": [1.0, 10.0, 100.0]})
    assert times.ratio("slow", "fast") == Spread(2, 2, 2, 2, 3)


def test_a_gate_that_fails_stops_before_anything_runs():
    ran = []

    def gate():
        raise GateFailed("wrong")

    with pytest.raises(GateFailed, match="wrong"):
        run_paired({"a": lambda: ran.append(1)}, 3, gate=gate)
    assert ran == []


def test_the_clock_is_read_after_the_device_has_finished():
    calls = []
    run_paired(
        {"a": lambda: calls.append("work")},
        1,
        warmups=0,
        synchronise=lambda: calls.append("wait"),
        clock=lambda: float(len(calls)),
    )
    assert calls == ["wait", "work", "wait"]


def test_agreement_is_relative_to_the_largest_value():
    expected = torch.tensor([1.0, -200.0])
    assert check_agreement("x", expected + 0.1, expected, 1e-3) == pytest.approx(5e-4, rel=1e-3)
    for wrong in (expected + 1, expected * math.nan, torch.tensor([math.inf, 0.0])):
        with pytest.raises(GateFailed, match="x differs"):
            check_agreement("x", wrong, expected, 1e-3)
    with pytest.raises(GateFailed, match="shape"):
        check_agreement("x", expected[:1], expected, 1e-3)


def test_progress_of_a_part():
    seen = []
    report = within(lambda *a: seen.append(a), 10, 40)
    assert report is not None
    report(3, 5)
    assert seen == [(13, 40)]
    assert within(None, 10, 40) is None


@pytest.mark.parametrize(
    ("value", "text"), [(1370.4, "1370"), (12.345, "12.3"), (0.001234, "0.00123"), (0, "0")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text
