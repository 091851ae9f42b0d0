"""Which task an experience belongs to."""

from __future__ import annotations

from typing import Any


def task_of(experience: Any) -> int:
    """Number of an experience in its stream; that of the whole one for a sub-experience which may know it.

    Where an online stream hides its task boundaries, every sub-experience counts as a task. (Avalanche's own mark
    of the last sub-experience is missing where the size divides the experience: a change of this number is safer.)
    """
    if getattr(experience, "access_task_boundaries", False):
        experience = experience.origin_experience
    number: int = experience.current_experience
    return number
