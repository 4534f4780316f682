"""Run schedules for some seconds and print figures: ``python -m tests.simulation --seconds 60 --seed 0``."""

import argparse
import sys
import time
from collections import Counter

from tests.simulation.world import simulate, simulated_process, truth


def main() -> int:
    """Run schedules one after another; the exit status says whether a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    parser.add_argument("--schedules", type=int, default=1_000_000)
    parser.add_argument("--trace", action="store_true", help="print the requests of each schedule")
    asked = parser.parse_args()
    faults: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    schedules = requests = commits = takeovers = 0
    failures = []
    with simulated_process():
        truth()
        began = time.monotonic()
        while schedules < asked.schedules and time.monotonic() - began < asked.seconds:
            outcome = simulate(asked.seed + schedules, verify=schedules % 50 == 0)
            schedules += 1
            faults += outcome.faults
            errors += outcome.errors
            requests += outcome.requests
            commits += outcome.commits
            takeovers += outcome.takeovers
            if asked.trace:
                print("\n".join(outcome.trace))
            if outcome.problems:
                failures.append(outcome.seed)
                print(outcome)
        took_s = time.monotonic() - began
    print(f"{schedules} schedules in {took_s:.1f} s ({schedules / took_s:.1f} a second), {requests} requests")
    print(f"{commits} commits, {takeovers} changes of owner")
    print(f"faults: {', '.join(f'{name} {count}' for name, count in sorted(faults.items()))}")
    print(f"errors of commands: {', '.join(f'{name} {count}' for name, count in sorted(errors.items()))}")
    print(f"{len(failures)} schedules broke a rule: {failures[:20]}" if failures else "no rule was broken")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
