"""A task: that of regression, but for how it is learnt. The workflow reads this file, so that it does without torch."""

from dataclasses import replace

from gigapipe.configuration.tasks import TASKS, Task


def robust() -> Task:
    return replace(TASKS["regression"], learns="a number of the slide, by Huber's loss", learning="learning.py:Robust")
