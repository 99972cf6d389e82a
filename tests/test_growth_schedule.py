"""Growth schedules: read from texts, and asked during training."""

import json
import math

import net2net
import pytest
from models import EXAMPLES
from net2net import GrowthSchedule
from net2net.growth_text import AtEpoch, AtStep, Deepen, GrowthSyntaxError, Kernel, OnPlateau, Widen, parse

TEXT = """
# the whole language
step 2000: widen 1.5
step 4000: deepen 1  # one layer everywhere
epoch 10: widen 1.25 layers=stages.*,stem split=dyadic noise_scale=0.25 multiple_of=8 seed=3
plateau patience=3 delta=0.001: widen 1.5; plateau patience=2 mode=min: deepen 2 after=*.relu method=paired

step 100:kernel 5 layers=stem
"""


def test_every_form() -> None:
    read = parse(TEXT)
    options = {"layers": ("stages.*", "stem"), "split": "dyadic", "noise_scale": 0.25, "multiple_of": 8, "seed": 3}
    assert [(g.when, g.what) for g in read] == [
        (AtStep(2000), Widen(1.5)),
        (AtStep(4000), Deepen(1)),
        (AtEpoch(10), Widen(1.25, options)),
        (OnPlateau(3, 0.001), Widen(1.5)),
        (OnPlateau(2), Deepen(2, {"after": ("*.relu",), "method": "paired"})),
        (AtStep(100), Kernel(5, ("stem",))),
    ]
    assert str(read[1]) == "step 4000: deepen 1"
    assert parse(str(g) for g in read) == read
    assert parse("") == parse(" # nothing\n;;\n") == []


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        ("when 5: widen 2", 1, r"expected when to grow \(step, epoch, plateau\), not 'when'"),
        ("step", 5, "expected step, but here is the end"),
        ("step five: widen 2", 6, r"step \(='five'\) must be a whole number that is not negative"),
        ("step -1: widen 2", 6, r"step \(='-1'\)"),
        ("step 5 widen 2", 8, "expected a colon, not 'widen'"),
        ("step 5:", 8, "expected what to do, but here is the end"),
        ("step 5: grow 2", 9, r"expected what to do \(widen, deepen, kernel\), not 'grow'"),
        ("step 5: widen", 14, "expected the factor, but here is the end"),
        ("step 5: widen 1", 15, "must be a factor above 1"),
        ("step 5: widen nan", 15, "must be a factor above 1"),
        ("step 5: widen 2 stem", 17, "expected name=value, not 'stem'"),
        ("step 5: widen 2 after=stem", 17, "no option 'after' here; there are layers, mapping"),
        ("step 5: widen 2 seed=1 seed=2", 24, "seed is given twice"),
        ("step 5: widen 2 layers=a,,b", 17, "names or patterns"),
        ("step 5: widen 2 split=", 17, r"split \(=''\) must be a word"),
        ("step 5: widen 2: deepen 1", 16, "one colon too many"),
        ("step 5: deepen 1.5", 16, "a positive whole number"),
        ("step 5: kernel 5", 17, "kernel needs layers="),
        ("plateau: widen 2", 8, "plateau needs patience="),
        ("plateau", 8, "plateau needs patience="),
        ("plateau patience=0: widen 2", 9, r"patience \(='0'\)"),
        ("plateau patience=2 delta=-1: widen 2", 20, r"delta \(='-1'\)"),
        ("plateau patience=2 mode=up: widen 2", 20, "one of min, max"),
    ],
)
def test_errors_show_the_place(text: str, column: int, why: str) -> None:
    with pytest.raises(GrowthSyntaxError, match=why) as error:
        parse(["step 1: widen 2;", text])
    assert (error.value.entry, error.value.column) == (2, column)
    message = str(error.value).splitlines()
    assert message[0].startswith(f"growth schedule, entry 2, column {column}: ")
    assert message[1:] == ["  " + text, "  " + " " * (column - 1) + "^"]


def test_what_is_no_text() -> None:
    with pytest.raises(TypeError, match="not 3"):
        parse(["step 1: widen 2", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="mode must be the same"):
        GrowthSchedule("plateau patience=1 mode=max: widen 2; plateau patience=1: widen 2")


def due(schedule: GrowthSchedule, **now: float) -> list[str]:
    return [str(g) for g in schedule.due(**now)]  # type: ignore[arg-type]


def test_steps_and_epochs() -> None:
    schedule = GrowthSchedule("step 3: widen 2; epoch 1: deepen 1; step 3: deepen 2; step 0: widen 1.5")
    assert due(schedule, step=0) == ["step 0: widen 1.5"]
    assert due(schedule, step=2) == []
    assert due(schedule, epoch=1) == ["epoch 1: deepen 1"]
    assert due(schedule, step=7) == ["step 3: widen 2", "step 3: deepen 2"]  # in steps of several
    assert due(schedule, step=8, epoch=2) == []
    assert schedule.pending == []


def test_plateaus() -> None:
    schedule = GrowthSchedule("plateau patience=2 delta=0.1: widen 2; plateau patience=2: widen 3; step 5: deepen 1")
    for metric in (1.0, 0.95, 0.85, 0.8):  # better than 0.9, then one evaluation without
        assert due(schedule, metric=metric) == []
    assert due(schedule, step=4) == []
    assert due(schedule, metric=math.nan) == ["plateau patience=2 delta=0.1: widen 2"]
    # From now on without a delta. The best so far is what improved by enough, 0.85.
    assert due(schedule, metric=0.9) == []
    assert due(schedule, step=5) == ["step 5: deepen 1"]
    assert due(schedule, metric=0.9) == []  # patience begins anew with each growth
    assert due(schedule, metric=0.84) == []
    assert due(schedule, metric=0.84) == []
    assert due(schedule, metric=0.84) == ["plateau patience=2: widen 3"]
    assert due(schedule, metric=9.0) == []


def test_a_plateau_of_accuracy() -> None:
    schedule = GrowthSchedule("plateau patience=1 mode=max: widen 2")
    assert due(schedule, metric=0.5) == due(schedule, metric=0.6) == []
    assert due(schedule, metric=0.6) == ["plateau patience=1 mode=max: widen 2"]


def test_nothing_but_nan() -> None:
    schedule = GrowthSchedule("plateau patience=2: widen 2")
    assert due(schedule, metric=math.nan) == []
    assert due(schedule, metric=math.nan) == ["plateau patience=2: widen 2"]


def test_a_run_that_is_resumed() -> None:
    text = "step 2: widen 2; plateau patience=2: deepen 1; step 9: widen 1.5"
    metrics = [1.0, 0.9, 0.9, 0.95, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9]

    def run(schedule: GrowthSchedule, start: int, stop: int) -> list[tuple[int, str]]:
        return [(s, g) for s in range(start, stop) for g in due(schedule, step=s, metric=metrics[s])]

    whole = run(GrowthSchedule(text), 0, 10)
    assert len(whole) == 3
    for stop in range(10):
        first, second = GrowthSchedule(text), GrowthSchedule(text)
        before = run(first, 0, stop)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert before + run(second, stop, 10) == whole
    with pytest.raises(ValueError, match="state of another growth schedule"):
        GrowthSchedule("step 2: widen 3").load_state_dict(first.state_dict())


def test_what_is_due_can_be_done() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    schedule = GrowthSchedule(
        "step 1: widen 1.5 layers=0,4 noise=none; step 1: deepen 1 after=2; step 1: kernel 5 layers=0"
    )
    student = model
    for growth in schedule.due(step=1):
        student = net2net.grow(student, x, **growth.what.arguments()).model
    assert net2net.verify(model, student, x).max_rel < 1e-9
    assert student[0].weight.shape == (9, 3, 5, 5)
