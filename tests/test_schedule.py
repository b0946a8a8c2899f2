"""The schedule of a training: its learning rates, and what it makes of epochs without a better validation."""

import pytest

from gigapipe.training.schedule import Schedule
from gigapipe.training.segmentation import SegmenterSettings
from gigapipe.training.state import State

EPOCHS, STEPS, HIGHEST = 20, 5, 1e-3


def schedule(**more) -> Schedule:
    settings = SegmenterSettings(
        mpp=1.0, fold=0, epochs=EPOCHS, batch=1, learning_rate=HIGHEST, weight_decay=0.0, seed=0, **more
    )
    return Schedule(settings, STEPS)


def rates(schedule: Schedule, falls: int = 0) -> list[float]:
    at = [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS)]
    return [schedule.learning_rate(State([1, 1, 1], None, epoch=e, step=s, falls=falls)) for e, s in at]


def test_the_learning_rate_warms_up_and_follows_half_a_cosine():
    found = rates(schedule())
    assert found[0] == pytest.approx(HIGHEST / 11)
    assert found[:10] == sorted(found[:10]) and found[10] == HIGHEST
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[55] == pytest.approx(HIGHEST / 2) and 0 < found[-1] < HIGHEST / 1000


def test_the_learning_rate_of_a_plateau_stays_until_it_falls():
    found = rates(schedule(schedule="plateau", patience=1))
    assert found[:10] == rates(schedule())[:10] and set(found[10:]) == {HIGHEST}
    assert rates(schedule(schedule="plateau", patience=1), falls=2) == pytest.approx([0.3**2 * rate for rate in found])


@pytest.mark.parametrize("least_steps, expected", [(0, 20), (100, 20), (101, 21), (600, 120)])
def test_a_training_of_few_slides_takes_more_epochs(least_steps, expected):
    made = schedule(least_steps=least_steps)  # of 5 steps an epoch
    assert made.goes_on(State([1, 1, 1], None, epoch=expected - 1))
    assert not made.goes_on(State([1, 1, 1], None, epoch=expected))
    assert made.learning_rate(State([1, 1, 1], None, epoch=expected - 1, step=STEPS - 1)) < HIGHEST / 500


@pytest.mark.parametrize(
    "more, since, falls, expected",
    [
        ({}, 0, 0, "on"),  # without patience
        ({"patience": 2}, 4, 0, "on"),
        ({"patience": 2}, 3, 0, "ends"),
        ({"patience": 2, "schedule": "plateau"}, 4, 0, "on"),
        ({"patience": 2, "schedule": "plateau"}, 3, 2, "falls"),
        ({"patience": 2, "schedule": "plateau"}, 3, 3, "ends"),
    ],
)
def test_when_patience_is_over(more, since, falls, expected):
    made, state = schedule(**more), State([1, 1, 1], None, epoch=5, since=since, falls=falls)
    assert (made.falls(state), made.ends(state)) == (expected == "falls", expected == "ends")


def test_no_epoch_follows_the_last_or_an_end():
    assert schedule().goes_on(State([1, 1, 1], None, epoch=EPOCHS - 1))
    assert not schedule().goes_on(State([1, 1, 1], None, epoch=EPOCHS))
    assert not schedule().goes_on(State([1, 1, 1], None, epoch=1, ended=True))
