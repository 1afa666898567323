"""Makes runs/plays.csv: who played which track on which day. `--more` adds what came later.

python examples/recommender/history.py          # 400 listeners, of jazz or of metal
python examples/recommender/history.py --more   # then all of them turn to folk
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

PATH = Path("runs/plays.csv")
LISTENERS, TRACKS, FAVOURITES, PLAYS = 400, 20, 6, 15


def main() -> None:
    parser = argparse.ArgumentParser(description="Make or extend runs/plays.csv.")
    parser.add_argument("--more", action="store_true", help="add what came later")
    chance, more = random.Random(0), parser.parse_args().more
    if more and not PATH.is_file():
        parser.error(f"there is no {PATH} yet; run this without --more first")
    PATH.parent.mkdir(exist_ok=True)
    with PATH.open("a" if more else "w", newline="") as file:
        writer = csv.writer(file)
        if not more:
            writer.writerow(["listener", "track", "day"])
        for listener in range(LISTENERS):
            kind = "folk" if more else ("jazz", "metal")[listener % 2]
            liked = chance.sample(range(TRACKS), FAVOURITES)
            first = PLAYS if more else 0
            for day, track in enumerate(chance.choices(liked, k=PLAYS), first):
                writer.writerow([f"listener-{listener}", f"{kind}-{track}", day])
    with PATH.open() as file:
        print(f"{PATH} has {sum(1 for _ in file) - 1:,} plays")


if __name__ == "__main__":
    main()
