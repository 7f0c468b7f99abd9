"""The command `python -m benchmarks.run`. Owns the order of the jobs and the choice of data."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.data import SHAPES
from benchmarks.jobs import JOBS, KEYS, SHAPED
from benchmarks.measure import Contest, Figure, Plan
from benchmarks.report import load_targets, print_conditions, print_figure, print_table, save

__all__ = ["main"]

TUNED_SEED = 1
"""The seed used for tuning; the second pass uses a random one."""

_PROFILE_LINES = 15


def main() -> int:
    """Run the selected jobs, print the figures, and save them; a missed target is reported, but is not an error."""
    options = _options()
    targets = load_targets()
    plans = _plans(options)
    conditions = print_conditions(plans)
    figures: list[Figure] = []
    for plan in plans:
        for name, job in JOBS.items():
            if not _wanted(options.job or options.profile, name):
                continue
            if plan is not plans[0] and name not in SHAPED:
                continue
            for item in job(plan):
                keys = item.keys if isinstance(item, Contest) else (item.key,)
                asked = options.job or options.profile
                if asked is not None and asked != name and asked not in keys:
                    continue
                if isinstance(item, Figure):
                    found = [item]
                elif options.profile:
                    print(
                        f"--- {', '.join(item.keys)} ({plan.shape})\n{item.profile(_PROFILE_LINES)}",
                        flush=True,
                    )
                    continue
                else:
                    found = item.play(plan.rounds)
                for figure in found:
                    figure.shape = plan.shape if name in SHAPED else ""
                    print_figure(figure, targets[figure.key])
                figures += found
    if figures:
        print_table(figures, targets)
        print(f"\nsaved: {save(conditions, figures, targets)}")
    return 0


def _wanted(asked: str | None, name: str) -> bool:
    return asked is None or asked == name or asked in KEYS[name]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    names = sorted({*JOBS, *(key for keys in KEYS.values() for key in keys)})
    add = parser.add_argument
    add("--quick", action="store_true", help="small and short: a check that everything runs, not for quoting")
    add("--job", choices=names, metavar="NAME", help=f"only this job: {', '.join(names)}")
    add("--profile", choices=names, metavar="NAME", help="profile the store's side of a job instead")
    add("--points", type=int, help="points in the cached store that is queried (10,000,000)")
    add("--batch-points", type=int, help="points per run of batches (1,500,000)")
    add("--carried-points", type=int, help="points to export and import (1,000,000)")
    add("--legacy-points", type=int, help="points in the legacy store to upgrade (5,000,000)")
    add("--rounds", type=int, help="rounds that count, after a warm-up (5)")
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
    return parser.parse_args()


def _plans(options: argparse.Namespace) -> list[Plan]:
    quick = options.quick
    first = Plan(
        quick=quick,
        shape=options.shape,
        seed=options.seed,
        rounds=options.rounds or (3 if quick else 5),
        run_s=0.5 if quick else 1.5,
        points=options.batch_points or (200_000 if quick else 1_500_000),
        store_points=options.points or (500_000 if quick else 10_000_000),
        carried_points=options.carried_points or (200_000 if quick else 1_000_000),
        legacy_points=options.legacy_points or (200_000 if quick else 5_000_000),
        steady_s=12.0 if quick else 90.0,
        cache=options.data.resolve(),
        rebuild=options.rebuild,
    )
    if quick or options.one_pass or options.profile:
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
