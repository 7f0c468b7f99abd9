"""The command `python -m benchmarks.run`. Owns the order of the jobs and the choice of data."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import document
from benchmarks.data import SHAPES
from benchmarks.jobs import CORE, JOBS, KEYS, SHAPED
from benchmarks.measure import Contest, Figure, Job, Plan
from benchmarks.report import load_targets, new_file, print_conditions, print_figure, print_table, save

__all__ = ["main"]

TUNED_SEED = 1
"""The seed used for tuning; the second pass uses a random one."""

_PROFILE_LINES = 15

_QUICK = Plan(
    shape="regular",
    seed=TUNED_SEED,
    rounds=2,
    run_s=0.3,
    points=100_000,
    store_points=100_000,
    other_points=20_000,
    carried_points=100_000,
    legacy_points=50_000,
    sustained_points=200_000,
    growth_points=(50_000, 100_000),
    steady_s=6.0,
    cache=Path(),
)
LEVELS: dict[str, Plan] = {
    "quick": _QUICK,
    "core": replace(
        _QUICK,
        rounds=3,
        run_s=1.2,
        points=300_000,
        store_points=1_000_000,
        carried_points=300_000,
        sustained_points=600_000,
        growth_points=(100_000, 300_000, 1_000_000),
    ),
    "full": replace(
        _QUICK,
        rounds=5,
        run_s=1.5,
        points=1_000_000,
        store_points=10_000_000,
        other_points=1_000_000,
        carried_points=1_000_000,
        legacy_points=5_000_000,
        sustained_points=10_000_000,
        growth_points=(100_000, 1_000_000, 10_000_000, 100_000_000),
        steady_s=90.0,
    ),
}
"""The amounts: to see that everything runs; the core table within minutes; everything."""


def main() -> int:
    """Run the selected jobs, print the figures, and save them; a missed target is reported, but is not an error."""
    options = _options()
    targets = load_targets()
    plans = _plans(options)
    if options.rebuild:
        for folder in plans[0].cache.glob("standing-*"):
            shutil.rmtree(folder)
    conditions = print_conditions(plans)
    figures: list[Figure] = []
    path = new_file()
    for plan in plans:
        for name, job in JOBS.items():
            if not _wanted(options, name) or (plan is not plans[0] and name not in SHAPED):
                continue
            began_s = time.monotonic()
            for figure in _figures(job, name, plan, options):
                figure.shape = plan.shape if name in SHAPED else ""
                print_figure(figure, targets[figure.key])
                figures.append(figure)
                save(path, options.level, conditions, figures)  # each time: a run may be stopped
            print(f"  {name}, {plan.shape}: {time.monotonic() - began_s:.0f} s", flush=True)
    if figures:
        print_table(figures, targets)
        print(f"\nsaved: {path}")
        if options.document:
            document.write([path])
    return 0


def _figures(job: Job, name: str, plan: Plan, options: argparse.Namespace) -> Iterator[Figure]:
    asked = {*options.job, *options.profile}
    for item in job(plan):
        keys = item.keys if isinstance(item, Contest) else (item.key,)
        if asked and name not in asked and asked.isdisjoint(keys):
            continue
        if isinstance(item, Figure):
            yield item
        elif options.profile:
            print(f"--- {', '.join(item.keys)} ({plan.shape})\n{item.profile(_PROFILE_LINES)}", flush=True)
        else:
            yield from item.play(plan.rounds)


def _wanted(options: argparse.Namespace, name: str) -> bool:
    asked = {*options.job, *options.profile}
    if not asked:
        return options.level == "full" or name in CORE
    return name in asked or not asked.isdisjoint(KEYS[name])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    names = sorted({*JOBS, *(key for keys in KEYS.values() for key in keys)})
    level = parser.add_mutually_exclusive_group()
    add = parser.add_argument
    parser.set_defaults(level="core")
    for option, value, text in (
        ("--quick", "quick", "small and short: a check that everything runs, not for quoting"),
        ("--full", "full", "every job, on ten million points; without it, the core on one million"),
    ):
        level.add_argument(option, dest="level", action="store_const", const=value, help=text)
    add("--job", nargs="+", default=[], choices=names, metavar="NAME", help=f"only these: {', '.join(names)}")
    add(
        "--profile",
        nargs="+",
        default=[],
        choices=names,
        metavar="NAME",
        help="profile the store's side instead",
    )
    add("--points", type=int, help="points in the cached stores that are queried")
    add("--batch-points", type=int, help="points per run of batches")
    add("--other-points", type=int, help="points that servers and other libraries hold")
    add("--sustained-points", type=int, help="points of the sustained runs")
    add("--carried-points", type=int, help="points to export and import")
    add("--legacy-points", type=int, help="points in the legacy store to upgrade")
    add("--growth-points", type=int, nargs="+", help="sizes at which growth is measured")
    add("--rounds", type=int, help="rounds that count, after a warm-up")
    add("--seed", type=int, default=TUNED_SEED, help="seed of the first pass")
    add("--shape", choices=SHAPES, default=SHAPES[0], help="shape of the first pass")
    add("--one-pass", action="store_true", help="skip the second pass with another shape and seed")
    add(
        "--data",
        type=Path,
        default=Path(tempfile.gettempdir()) / "holdfast-benchmarks",
        help="folder for cached stores, on the disk to measure",
    )
    add("--rebuild", action="store_true", help="create the cached stores again")
    add("--document", action="store_true", help="put the figures into docs/benchmarks.md")
    return parser.parse_args()


def _plans(options: argparse.Namespace) -> list[Plan]:
    first = replace(
        LEVELS[options.level], shape=options.shape, seed=options.seed, cache=options.data.resolve()
    )
    given = {
        "store_points": options.points,
        "points": options.batch_points,
        "other_points": options.other_points,
        "sustained_points": options.sustained_points,
        "carried_points": options.carried_points,
        "legacy_points": options.legacy_points,
        "growth_points": options.growth_points,
        "rounds": options.rounds,
    }
    first = replace(first, **{name: value for name, value in given.items() if value is not None})
    if options.level != "full" or options.one_pass or options.profile:
        return [first]
    other = next(shape for shape in SHAPES if shape != options.shape)
    unseen = replace(
        first,
        shape=other,
        seed=secrets.randbelow(10**6),
        rounds=max(3, first.rounds // 2),
        points=first.points // 2,
        store_points=first.store_points // 5,
        carried_points=first.carried_points // 2,
    )
    return [first, unseen]


if __name__ == "__main__":
    sys.exit(main())
