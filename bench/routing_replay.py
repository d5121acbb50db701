"""Replay recorded outcomes of many models through the shipped router: quality, cost, time.

    python bench/routing_replay.py FOLDER [--dataset NAME] [--split dev] [--seeds 5]

FOLDER holds ``NAME.prompts.parquet`` (id, prompt_chars), ``NAME.outcomes.parquet`` (id, model,
score 0..1, cost_usd) and ``splits.parquet`` (dataset, id, split). Needs pyarrow.

Each prompt is a request: the router decides, learns the chosen model's real cost from the attempt,
and its score from feedback where ``--feedback`` draws it. It is told nothing else: the weights are
an operator's guess (dearer is better), the prices are the mean cost of a model over the replayed
prompts spread over their tokens, and every answer takes one second. Nothing is tuned.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from tokenhub.core.catalog import Catalog, Model, Prices, Provider
from tokenhub.core.decision import DEFAULT_OUTPUT_TOKENS, MODES, Attempt, RouteQuery
from tokenhub.routing.router import Router

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Answer = tuple[float, int]  # score, nano-dollars
Row = tuple[str, int, dict[str, Answer]]  # prompt id, input tokens, answer by model
Pass = tuple[list[Answer], Counter[str], list[float], list[float]]

NANO = 1_000_000_000
LATENCY_MS = 1000.0
WEIGHTS = (2, 5, 8, 10)


class VirtualClock:
    """One second per request."""

    def __init__(self) -> None:
        self.seconds = 0

    def now_ms(self) -> int:
        return 1_700_000_000_000 + self.seconds * 1000

    def monotonic(self) -> float:
        return float(self.seconds)

    def new_id(self) -> str:
        return f"r-{self.seconds}"


def load(folder: Path, dataset: str, split: str) -> list[Row]:
    """The prompts of a split, sorted by id."""
    kept = {
        row["id"]
        for row in pq.read_table(folder / "splits.parquet").to_pylist()
        if row["dataset"] == dataset and row["split"] == split
    }
    outcomes: defaultdict[str, dict[str, Answer]] = defaultdict(dict)
    for row in pq.read_table(folder / f"{dataset}.outcomes.parquet").to_pylist():
        if row["id"] in kept and row["score"] is not None and row["cost_usd"] is not None:
            outcomes[row["id"]][row["model"]] = (row["score"], round(row["cost_usd"] * NANO))
    prompts = pq.read_table(
        folder / f"{dataset}.prompts.parquet", columns=["id", "prompt_chars"]
    ).to_pylist()
    return sorted(
        (row["id"], max(row["prompt_chars"] // 4, 1), outcomes[row["id"]])
        for row in prompts
        if row["id"] in outcomes
    )


def mean_costs(rows: Iterable[Row]) -> dict[str, float]:
    """Model → mean nano-dollars."""
    costs: defaultdict[str, list[int]] = defaultdict(list)
    for _, _, answers in rows:
        for model, (_, cost) in answers.items():
            costs[model].append(cost)
    return {model: statistics.fmean(values) for model, values in costs.items()}


def catalog_of(rows: Sequence[Row]) -> Catalog:
    costs = mean_costs(rows)
    tokens = statistics.fmean(tokens for _, tokens, _ in rows) + DEFAULT_OUTPUT_TOKENS
    models = {}
    for place, (name, cost) in enumerate(sorted(costs.items(), key=lambda item: item[1])):
        price = round(cost * 1_000_000 / tokens)
        models[name] = Model(
            id=name,
            provider_id="recorded",
            weight=WEIGHTS[min(place * len(WEIGHTS) // len(costs), len(WEIGHTS) - 1)],
            prices=Prices(input=price, output=price),
        )
    provider = Provider(id="recorded", type="openai")
    return Catalog(version=1, providers={"recorded": provider}, models=models)


def replay(rows: Sequence[Row], catalog: Catalog, mode: str, seed: int, feedback: float) -> Pass:
    """One pass in a shuffled order: ([(score, nano)], choices, decide us, learn us)."""
    clock = VirtualClock()
    router = Router(clock, seed=seed)
    router.update(catalog=catalog)
    rng = random.Random(seed)
    order = rng.sample(rows, len(rows))
    served: list[Answer] = []
    chosen: Counter[str] = Counter()
    deciding: list[float] = []
    learning: list[float] = []
    for name, tokens, answers in order:
        clock.seconds += 1
        asked = RouteQuery(
            request_id=f"{seed}/{name}", mode=mode, input_tokens=tokens, models=tuple(answers)
        )
        began = time.perf_counter_ns()
        decision = router.decide(asked)
        decided = time.perf_counter_ns()
        model = decision.chosen.model_id
        score, cost = answers[model]
        attempt = Attempt(
            number=1,
            model_id=model,
            provider_id="recorded",
            at_ms=clock.now_ms(),
            latency_ms=LATENCY_MS,
            cost=cost,
            propensity=decision.propensity,
        )
        ended = time.perf_counter_ns()
        router.record(decision, attempt)
        if rng.random() < feedback:
            router.feedback(asked.request_id, min(max(score, 0.0), 1.0))
        learning.append((time.perf_counter_ns() - ended) / 1000)
        deciding.append((decided - began) / 1000)
        served.append((score, cost))
        chosen[model] += 1
    return served, chosen, deciding, learning


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def summary(name: str, passes: Sequence[Pass]) -> dict[str, Any]:
    served = [one for run in passes for one in run[0]]
    chosen: Counter[str] = Counter()
    for run in passes:
        chosen.update(run[1])
    deciding = [value for run in passes for value in run[2]]
    learning = [value for run in passes for value in run[3]]
    quality = [statistics.fmean(score for score, _ in run[0]) for run in passes]
    return {
        "policy": name,
        "quality": statistics.fmean(quality),
        "quality_sd": statistics.pstdev(quality),
        "cost_usd": statistics.fmean(cost for _, cost in served) / NANO,
        "decide_p50_us": quantile(deciding, 0.5) if deciding else None,
        "decide_p99_us": quantile(deciding, 0.99) if deciding else None,
        "learn_p50_us": quantile(learning, 0.5) if learning else None,
        "shares": {model: count / chosen.total() for model, count in chosen.most_common()},
    }


def fixed(rows: Iterable[Row], pick: Callable[[list[str]], str], name: str) -> dict[str, Any]:
    """A policy that needs no router: ``pick(names)`` chooses among those that have an answer."""
    served: list[Answer] = []
    chosen: Counter[str] = Counter()
    for _, _, answers in rows:
        model = pick(sorted(answers))
        if model in answers:
            served.append(answers[model])
            chosen[model] += 1
    return summary(name, [(served, chosen, [], [])])


def _always(model: str, names: list[str]) -> str:
    return model if model in names else ""


def table(results: Iterable[dict[str, Any]]) -> str:
    head = f"{'policy':<42} {'quality':>8} {'sd':>7} {'$/request':>11} {'decide p50/p99 us':>18}"
    lines = [f"{head} {'learn us':>9}  most chosen"]
    for one in results:
        times = (
            ""
            if one["decide_p50_us"] is None
            else (f"{one['decide_p50_us']:.1f} / {one['decide_p99_us']:.1f}")
        )
        learn = "" if one["learn_p50_us"] is None else f"{one['learn_p50_us']:.1f}"
        top = ", ".join(
            f"{model.rpartition('/')[2]} {share:.0%}"
            for model, share in list(one["shares"].items())[:3]
        )
        lines.append(
            f"{one['policy']:<42} {one['quality']:>8.4f} {one['quality_sd']:>7.4f}"
            f" {one['cost_usd']:>11.3e} {times:>18} {learn:>9}  {top}"
        )
    return "\n".join(lines)


def main() -> None:
    """Replay, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the parquet files are")
    parser.add_argument("--dataset", default="paretobandit")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--feedback", type=float, default=1.0, help="share of answers with a score")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    rows = load(options.folder, options.dataset, options.split)
    if not rows:
        parser.error(f"no prompts of {options.dataset}/{options.split} in {options.folder}")
    catalog = catalog_of(rows)
    results = [fixed(rows, partial(_always, model), f"always {model}") for model in catalog.models]
    results.append(fixed(rows, random.Random(0).choice, "even mix"))
    for mode in MODES:
        shares = (options.feedback, 0.0) if mode == "thompson" else (options.feedback,)
        for share in shares:
            name = mode if mode != "thompson" else f"thompson, feedback on {share:.0%}"
            passes = [replay(rows, catalog, mode, seed, share) for seed in range(options.seeds)]
            results.append(summary(name, passes))
    print(f"{options.dataset}/{options.split}: {len(rows)} prompts, {options.seeds} seeds")
    print(table(results))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
