"""Points of several paths at one strength, joined: means, and the standard errors of means."""

import math
from collections.abc import Sequence, Set
from itertools import pairwise

from shrinkage.errors import shown
from shrinkage.paths.point import Point


def check_joined(strengths: Sequence[Sequence[float]], directions: Set[bool], weights: Sequence[float]) -> None:
    """Raise `ValueError` unless paths with these strengths and directions of scores can be joined."""
    if len(strengths) < 2:
        raise ValueError(f"expected two paths or more to join, got {len(strengths)}")
    if len(weights) != len(strengths) or not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights must be {len(strengths)} numbers > 0, one per path, got {shown(weights)}")
    if len(directions) > 1:
        raise ValueError("some of the paths maximize their score and others minimize it: they cannot be joined")
    for one, other in pairwise(strengths):
        if any(a != b for a, b in zip(one, other, strict=False)):
            raise ValueError(
                f"the paths have other strengths, {shown(one)} and {shown(other)}: give the same list to each of them"
            )


def joined(points: Sequence[Point], weights: Sequence[float]) -> Point:
    """Return the point that tells the means over `points`, which are of one strength and have weights."""
    refits = [point.refit for point in points if point.refit is not None]
    score = mean([point.score for point in points], weights)
    return Point(
        strength=points[0].strength,
        zeros=mean([point.zeros for point in points], weights),
        size=points[0].size,
        zero_groups=mean([point.zero_groups for point in points], weights),
        groups=points[0].groups,
        score=score,
        error=math.sqrt(mean([(point.score - score) ** 2 for point in points], weights) / (len(points) - 1)),
        updates=mean([point.updates for point in points], weights),
        refit=joined(refits, weights) if len(refits) == len(points) else None,
    )


def mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the weighted mean."""
    return math.fsum(w * v for v, w in zip(values, weights, strict=True)) / math.fsum(weights)
