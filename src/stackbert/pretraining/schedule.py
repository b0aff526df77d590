"""The learning rate as a pure function of the step, running on across growth."""

import bisect
import math

from stackbert.recipe import Recipe, ScheduleSpec


def learning_rate_factor(recipe: Recipe, step: int) -> float:
    """Share of the peak learning rate at update number `step`, counted from 0.

    The schedule knows nothing of stages (Gong et al. let the rate carry on where it was); only
    `rewarmup_steps`, 0 in the paper, lets it climb anew after a growth. The first update of a
    warm-up is not at rate zero, or it would be lost. A run that was extended goes through its
    schedule again; then the warm-up takes a twentieth of the extension at most.
    """
    schedule, warmup = recipe.schedule, recipe.schedule.warmup_steps
    begin = max((each for each in schedule.restarts if each <= step), default=0)
    end = min((each for each in schedule.restarts if each > step), default=recipe.total_steps)
    if begin:
        warmup = min(warmup or end - begin, (end - begin) // 20)
    if step - begin < warmup:
        factor = (step - begin + 1) / warmup
    else:
        factor = _after_warmup(schedule, step - begin, end - begin, warmup)
    since = min((step - grown for grown in recipe.growth_steps if grown <= step), default=math.inf)
    return factor * min(1.0, (since + 1) / (schedule.rewarmup_steps + 1))


def averaged_before(recipe: Recipe, step: int) -> int | None:
    """How many weights are in the tail's mean before those after `step` updates join it.

    None if these do not: some hundred of the tail do, as every single step would cost time.
    """
    total = recipe.total_steps
    earliest = max((*recipe.growth_steps, *recipe.schedule.restarts, 0))
    start = max(round((1.0 - recipe.tail_average) * total), earliest)
    start = min(start, total - 1)
    every = max(1, (total - start) // 100)
    if not recipe.tail_average or step <= start or (total - step) % every:
        return None
    return (step - start - 1) // every


def _after_warmup(schedule: ScheduleSpec, step: int, total: int, start: int) -> float:
    final = schedule.final_fraction
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "piecewise":
        around = [(-1, schedule.points[0][1]), *schedule.points, (math.inf, schedule.points[-1][1])]
        after = bisect.bisect_right(schedule.points, step, key=lambda point: point[0])
        (x0, y0), (x1, y1) = around[after : after + 2]
        return y0 + (y1 - y0) * (step - x0) / (x1 - x0)
    if schedule.name == "wsd":
        start = max(start, total - max(1, round(schedule.decay_fraction * total)))
    # Counted so that the last update is one step short of the end: an update at rate 0 is wasted.
    progress = min(1.0, max(0.0, (step - start) / (total - start)))
    if schedule.name == "cosine":
        return final + (1.0 - final) * (1.0 + math.cos(math.pi * progress)) / 2.0
    return 1.0 - (1.0 - final) * progress
