"""Many scenarios on all cores: `python -m tests.gateway.simulation [COUNT [FIRST_SEED]]`; exit code 1 when one breaks.

A broken one is repeated with `python -m tests.gateway.simulation 1 SEED`.
"""

import sys

from tests.gateway.simulation.batch import play_many

COUNT = 10_000
BROKEN_SHOWN = 20


def main() -> int:
    count, first = (int(sys.argv[n]) if len(sys.argv) > n else default for n, default in ((1, COUNT), (2, 0)))
    outcome = play_many(range(first, first + count))
    print(outcome)
    for text in outcome.broken[:BROKEN_SHOWN]:
        print(text)
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())
