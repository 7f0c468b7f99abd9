"""The command `python -m benchmarks.run`. Owns the order of the jobs and the choice of data.

The results are saved after each figure. A job that fails does not stop the others, and `--resume` continues a run that
was stopped.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import document
from benchmarks.data import SHAPES
from benchmarks.jobs import CORE, JOBS, KEYS, SHAPED
from benchmarks.measure import Contest, Figure, Job, Plan
from benchmarks.report import load_targets, print_conditions, print_figure, print_table
from benchmarks.runs import Run, newest_file

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
    claimed_points=100_000,
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
        claimed_points=300_000,
        carried_points=300_000,
        sustained_points=600_000,
        growth_points=(100_000, 300_000, 1_000_000),
    ),
    "full": replace(
        _QUICK,
        rounds=3,
        run_s=1.5,
        points=500_000,
        store_points=10_000_000,
        claimed_points=1_000_000,
        other_points=200_000,
        carried_points=1_000_000,
        legacy_points=2_000_000,
        sustained_points=4_000_000,
        growth_points=(100_000, 1_000_000, 10_000_000, 100_000_000),
        steady_s=60.0,
    ),
}
"""The amounts: to see that everything runs; the core table within minutes; everything."""


def main() -> int:
    """Run the selected jobs, print the figures, and save them; returns 1 if a job failed.

    A missed target is reported, but is not an error.
    """
    options = _options()
    targets = load_targets()
    run = _begun(options)
    if options.rebuild:
        for pattern in ("standing-*", "growth-*"):
            for folder in run.plans[0].cache.glob(pattern):
                shutil.rmtree(folder)
    run.add_conditions(print_conditions(run.plans))
    failed = []
    for plan in run.plans:
        for name, job in JOBS.items():
            is_repeated = plan is run.plans[0] or name in SHAPED
            if not _wanted(options, name) or not is_repeated or run.has(name, plan):
                continue
            run.begin(name, plan)
            began_s = time.monotonic()
            _reset_peak()
            try:
                for figure in _figures(job, name, plan, options):
                    figure.shape = plan.shape if name in SHAPED else ""
                    print_figure(figure, targets[figure.key])
                    run.add(figure)
            except Exception:  # noqa: BLE001  the other jobs have figures, too; the exit code reports it
                traceback.print_exc()
                failed.append(f"{name}, {plan.shape}")
            else:
                run.end(name, plan)
            lasted_s = time.monotonic() - began_s
            print(f"  {name}, {plan.shape}: {lasted_s:.0f} s, peak {_peak_mib():.0f} MiB", flush=True)
    if run.figures:
        print_table(run.figures, targets)
        print(f"\nsaved: {run.path}")
        if options.document:
            document.write([run.path])
    for job_name in failed:
        print(f"failed: {job_name}; --resume tries it again")
    return 1 if failed else 0


def _begun(options: argparse.Namespace) -> Run:
    """Return a new run, or the one to continue."""
    if not options.resume:
        return Run.new(options.level, _plans(options))
    path = newest_file(options.level)
    if path is None:
        sys.exit(f"there is no run of the level {options.level} to continue")
    print(f"continuing {path}")
    return Run.read(path, options.data.resolve())


def _reset_peak() -> None:
    """Let the peak memory of this process begin again, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mib() -> float:
    """Return the peak memory since then; 0 if the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


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
    add("--claimed-points", type=int, help="points in the databases of the legacy designs")
    add("--other-points", type=int, help="points that servers and other libraries hold")
    add("--sustained-points", type=int, help="points of the sustained runs")
    add("--carried-points", type=int, help="points to export and import")
    add("--legacy-points", type=int, help="points in the legacy store to upgrade")
    add("--growth-points", type=int, nargs="+", help="sizes at which growth is measured")
    add(
        "--delivery-s",
        type=float,
        help="seconds after which a delivery ends, even if its backlog does not (20): 3600 lets most reach the end",
    )
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
    add(
        "--resume",
        action="store_true",
        help="continue the newest run of this level with its data: what it has measured is not measured again",
    )
    return parser.parse_args()


def _plans(options: argparse.Namespace) -> list[Plan]:
    first = replace(
        LEVELS[options.level], shape=options.shape, seed=options.seed, cache=options.data.resolve()
    )
    given = {
        "store_points": options.points,
        "points": options.batch_points,
        "claimed_points": options.claimed_points,
        "other_points": options.other_points,
        "sustained_points": options.sustained_points,
        "carried_points": options.carried_points,
        "legacy_points": options.legacy_points,
        "growth_points": options.growth_points,
        "delivery_s": options.delivery_s,
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
