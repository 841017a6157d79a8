"""The league: shows its plan, makes its runs and prints what came out."""

from __future__ import annotations

from spcl_lib.analysis.intervals import summary
from spcl_lib.analysis.league import collect, league_table
from spcl_lib.runs.league import League, run_league
from spcl_lib.runs.profiles import cost, duration
from spcl_lib.runs.store import Run


def show_league_plan(league: League, jobs: int) -> None:
    """Prints how much of each round is finished, up to the round that is not, and the cost."""
    left = league.most_runs()
    for title, configs in league.rounds():
        done = sum(Run.of(c).metrics is not None for c in configs)
        print(f"{league.dataset} {title}: {done} of {len(configs)} runs finished")
        left -= done
        if done < len(configs):
            break
    else:
        return
    one = cost(league.dataset, league.profile)
    total = duration(one.seconds * left / jobs)
    print(f"one run: {one}")
    print(f"to do: at most {left} runs, about {total} in all with {jobs} side by side", flush=True)


def reproduce_league(league: League, jobs: int) -> bool:
    """Makes the unfinished runs of a league, and prints its table; returns whether all finished."""
    show_league_plan(league, jobs)
    if run_league(league, jobs):
        return False
    table = summary(league_table(collect(league))).sort_values("mAP", ascending=False)
    table = table.drop(columns=["study", "dataset", "profile"])
    print(table.round(2).to_string(index=False))
    return True
