"""Questions to the time series: one metric, cut into steps, each step one number.

Counters (``cost``, ``tokens``, ``errors``, ``requests``) are summed; times (``latency``, ``ttft``)
are averaged, counted, summed, or asked for extremes and quantiles.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenhub.core.errors import InvalidRequest
from tokenhub.telemetry.cell import PAIR, Cell
from tokenhub.telemetry.past import Past, Sums
from tokenhub.telemetry.series import DAY, HOUR, KEPT_MS, MINUTE, RESOLUTIONS, SECOND
from tokenhub.telemetry.sketch import Sketch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokenhub.storage.database import Row
    from tokenhub.telemetry.past import Memory, Points
    from tokenhub.telemetry.series import Series, Snapshot

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
TIME_AGGREGATES = ("avg", "sum", "count", "min", "max", *QUANTILES)
COUNTER_AGGREGATES = ("sum", "count", "avg")


class Metric(NamedTuple):
    """One metric.

    Attributes:
        column: its prefix in the store for times, its SQL sum for counters.
        default: the aggregate when none is asked for.
        scale: what stored numbers are divided by.
        value: a counter's number of a cell.
        sketch: the sketch of a cell, None for counters.
    """

    column: str
    default: str
    scale: float
    value: Callable[[Cell], int]
    sketch: Callable[[Cell], Sketch] | None = None

    @property
    def aggregates(self) -> tuple[str, ...]:
        """What may be asked for."""
        return TIME_AGGREGATES if self.sketch else COUNTER_AGGREGATES


METRICS = {
    "cost": Metric("cost", "sum", 1e9, lambda cell: cell.cost),
    "errors": Metric("errors", "sum", 1, lambda cell: cell.errors),
    "latency": Metric(
        "latency", "avg", 1e3, lambda cell: cell.latency.total, lambda cell: cell.latency
    ),
    "requests": Metric("requests", "sum", 1, lambda cell: cell.requests),
    "tokens": Metric("input + output", "sum", 1, lambda cell: cell.input + cell.output),
    "ttft": Metric("ttft", "avg", 1e3, lambda cell: cell.ttft.total, lambda cell: cell.ttft),
}
"""Dollars; requests; milliseconds; tokens."""

DEFAULT_RANGE = DAY
MOST_STEPS = 11_000
MOST_POINTS = 100_000
AIM_STEPS = 500
STEPS = (
    SECOND, 5 * SECOND, 15 * SECOND, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY,
    7 * DAY, 28 * DAY,
)  # fmt: skip

# Rows taken at a time before others get their turn on the loop: a fraction of a millisecond.
_SLICE = 100
_SKETCH_SLICE = 4


class Question(NamedTuple):
    """What is asked. Times are Unix milliseconds, ends included; "" = any; step 0 = you choose.

    Without ``end`` it ends now; without ``start`` it goes back a day, or 500 short steps.
    """

    metric: str
    model: str = ""
    provider: str = ""
    start: int = 0
    end: int = 0
    step: int = 0
    aggregate: str = ""


Steps = dict[int, dict[int, Any]]  # label number → step → Sums or Sketch


class Plan(NamedTuple):
    """A question made exact: which resolution is read, in which steps."""

    metric: Metric
    aggregate: str
    resolution: int
    start: int
    end: int
    step: int


def plan(asked: Question, now_ms: int) -> Plan:
    """Choose resolution and step.

    The resolution is the coarsest whose spans fill the step and that reaches back to the start;
    the step is rounded up to a multiple of it, the start down.

    Raises:
        InvalidRequest: an unknown metric or aggregate, or more points than one answer may have.
    """
    metric = METRICS.get(asked.metric)
    if metric is None:
        raise InvalidRequest(
            f"There is no metric `{asked.metric[:64]}`."
            if asked.metric
            else "`metric` is missing.",
            param="metric",
            code="invalid_value" if asked.metric else "missing_required_parameter",
            hint=f"Metrics: {', '.join(METRICS)}.",
        )
    aggregate = asked.aggregate or metric.default
    if aggregate not in metric.aggregates:
        raise InvalidRequest(
            f"`{asked.metric}` has no aggregate `{aggregate[:64]}`.",
            param="agg",
            hint=f"Aggregates of `{asked.metric}`: {', '.join(metric.aggregates)}.",
        )
    end = asked.end or now_ms
    usual = min(DEFAULT_RANGE, asked.step * AIM_STEPS or DEFAULT_RANGE)
    start = asked.start or max(0, end - usual)
    if start > end:
        raise InvalidRequest("`start` is after `end`.", param="start")
    step = asked.step or _step(end - start)
    resolution = _resolution(step, now_ms - start)
    step = -(-step // resolution) * resolution
    if (end - start) // step > MOST_STEPS:
        raise InvalidRequest(
            f"That would be {(end - start) // step} points; one series may have {MOST_STEPS}.",
            param="step_ms",
            hint="Ask for a larger step_ms, or for less time with start and end.",
        )
    return Plan(metric, aggregate, resolution, start - start % resolution, end, step)


def _step(length: int) -> int:
    return next((step for step in STEPS if length <= step * AIM_STEPS), STEPS[-1])


def _resolution(step: int, age: int) -> int:
    kept = [one for one in RESOLUTIONS if age <= KEPT_MS.get(one, age)]
    fitting = [one for one in kept if step % one == 0]
    return max(fitting) if fitting else min(kept)


async def answer(
    series: Series, asked: Question, now_ms: int, memory: Memory | None = None
) -> dict[str, Any]:
    """``{"series": [{metric, model_id?, provider_id?, points}], metric, agg, step_ms}``.

    Points are ``{"t", "v"}``, t the begin of the step, oldest first; a step in which nothing
    happened has none. Call ``series.advance(now_ms)`` first.

    Raises:
        InvalidRequest: as ``plan``.
    """
    chosen = plan(asked, now_ms)
    # Before anything is awaited: what is stored later than this is not read below.
    recent = series.snapshot(chosen.resolution)
    version = series.changes[chosen.resolution]
    fresh: Steps = {}
    _add_recent(series, chosen, recent, fresh)
    labels = series.pairs(asked.model, asked.provider)
    until = min(chosen.end, recent.at - 1)
    open_step = recent.at - recent.at % chosen.step
    key = (*chosen._replace(end=until), asked.model, asked.provider, open_step)
    past = memory.get(key, version) if memory else None
    if past is None:
        past = await _past(series, chosen, until, labels, open_step)
        if memory:
            memory.put(key, version, past)
    shown = []
    for number, label in sorted(labels.items(), key=lambda item: item[1]):
        points = past.points.get(number, [])
        last = _together(past.last.get(number), fresh.get(number, {}).get(open_step))
        points = points + _point(chosen, open_step, last) if last else points
        if points:
            one: dict[str, Any] = {"metric": asked.metric}
            if label.name:
                one["model_id"] = label.name
            if label.provider:
                one["provider_id"] = label.provider
            one["points"] = points
            shown.append(one)
    return {
        "series": shown,
        "metric": asked.metric,
        "agg": chosen.aggregate,
        "step_ms": chosen.step,
    }


async def _past(
    series: Series, chosen: Plan, until: int, labels: Iterable[int], open_step: int
) -> Past:
    await series.settled()
    past = Past({}, {})
    for number in labels:
        steps = await _read(series, chosen, until, number)
        if open_step in steps:
            past.last[number] = steps.pop(open_step)
        if steps:
            past.points[number] = await _points(chosen, steps)
        if past.size > MOST_POINTS:
            raise InvalidRequest(
                f"The answer would have more than {MOST_POINTS} points.",
                param="step_ms",
                hint="Ask for a larger step_ms, or name a model_id or a provider_id.",
            )
    return past


def _together(stored: Any, fresh: Any) -> Any:
    """The step that is not over. What is stored is shared with later answers: it stays as it is."""
    if fresh is None:
        return stored
    if stored is not None:
        fresh.merge(stored)
    return fresh


def _add_recent(series: Series, chosen: Plan, recent: Snapshot, steps: Steps) -> None:
    if not chosen.start <= recent.at <= chosen.end:
        return
    at = recent.at - recent.at % chosen.step
    for label, cell in recent.cells.items():
        if label.kind == PAIR:
            _merge(steps, series.id_of(label), at, _part(chosen, cell))


def _part(chosen: Plan, cell: Cell) -> Sums | Sketch:
    metric = chosen.metric
    if metric.sketch is None:
        return Sums(cell.requests, metric.value(cell), 0, 0)
    sketch = metric.sketch(cell)
    if chosen.aggregate not in QUANTILES:
        return Sums(sketch.count, sketch.total, sketch.low, sketch.high)
    copy = Sketch()
    copy.merge(sketch)
    return copy


def _merge(steps: Steps, number: int, at: int, part: Any) -> None:
    points = steps.setdefault(number, {})
    if at in points:
        points[at].merge(part)
    else:
        points[at] = part


async def _read(series: Series, chosen: Plan, until: int, number: int) -> dict[int, Any]:
    values = {
        "label": number,
        "resolution": chosen.resolution,
        "start": chosen.start,
        "end": until,
        "step": chosen.step,
    }
    if chosen.aggregate in QUANTILES:
        rows = await series.rows(_sketch_sql(chosen.metric.column), values)
        together = _SKETCH_SLICE
    else:
        rows = await series.rows(_sums_sql(chosen.metric), values)
        together = _SLICE
    steps: Steps = {}
    for first in range(0, len(rows), together):
        for row in rows[first : first + together]:
            _merge(steps, number, row[0], _stored(chosen, row))
        await asyncio.sleep(0)
    return steps.get(number, {})


def _stored(chosen: Plan, row: Row) -> Sums | Sketch:
    if chosen.aggregate in QUANTILES:
        return Sketch.unpack(*row[1:])
    return Sums(*row[1:])


def _sums_sql(metric: Metric) -> str:
    # The sum of a step is made where the rows are: a year of hours is read as its days.
    if metric.sketch is None:
        sums = f"SUM(requests), SUM({metric.column}), 0, 0"
        where = ""
    else:
        name = metric.column
        sums = f"SUM({name}_count), SUM({name}_total), MIN({name}_low), MAX({name}_high)"
        where = f"AND {name}_count > 0"
    return f"""
    SELECT at - at % :step AS step, {sums} FROM series_points
    WHERE label = :label AND resolution = :resolution AND at >= :start AND at <= :end {where}
    GROUP BY at - at % :step ORDER BY step
    """  # noqa: S608 - constant names


def _sketch_sql(name: str) -> str:
    return f"""
    SELECT at - at % :step, {name}_count, {name}_total, {name}_low, {name}_high, {name}
    FROM series_points
    WHERE label = :label AND resolution = :resolution AND at >= :start AND at <= :end
        AND {name}_count > 0
    ORDER BY at
    """  # noqa: S608 - constant names


async def _points(chosen: Plan, steps: dict[int, Any]) -> Points:
    together = _SKETCH_SLICE if chosen.aggregate in QUANTILES else _SLICE
    points: Points = []
    for done, at in enumerate(sorted(steps), 1):
        points += _point(chosen, at, steps[at])
        if done % together == 0:
            await asyncio.sleep(0)
    return points


def _point(chosen: Plan, at: int, part: Any) -> Points:
    value = _value(chosen, part)
    return [] if value is None else [{"t": _instant(at), "v": value}]


def _value(chosen: Plan, part: Any) -> float | int | None:
    aggregate, scale = chosen.aggregate, chosen.metric.scale
    if aggregate in QUANTILES:
        [value] = part.quantiles((QUANTILES[aggregate],))
        return None if value is None else round(value, 3)
    if aggregate == "count":
        return int(part.count)
    if not part.count:
        return None
    found: dict[str, float | int] = {
        "avg": part.total / part.count, "sum": part.total, "min": part.low,
    }  # fmt: skip
    number: float | int = found.get(aggregate, part.high)
    return number if scale == 1 else number / scale


def _instant(at_ms: int) -> str:
    text = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
    return text.replace("+00:00", "Z")
