"""What is new to a listener? `python examples/recommender/ask.py [LISTENER]`

The model knows numbers. Which listener and which track they are is published beside the weights of
each version, in `interactions.json`; the answer names its version. What the listener has played is
in the history, which is newer than any model: the request says it, and none of it comes back.
"""

from __future__ import annotations

import argparse
import csv
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

URL, RUN = "http://127.0.0.1:8086", Path("runs/recommender")
HISTORY = Path("runs/plays.csv")
# Requests of one length share a batch: filled up to a multiple of so many.
UNIT = 16


def table(step: str) -> dict[str, list[str]]:
    """{"users": [id, …], "items": [id, …]}: the number is the place."""
    path = RUN / "ckpt" / f"step-{int(step):08d}" / "model/interactions.json"
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def played(listener: str, items: list[str]) -> list[int]:
    """The numbers of the tracks that the listener has played; a track that is newer has none."""
    numbers = {name: number for number, name in enumerate(items)}
    with HISTORY.open(newline="") as file:
        tracks = {row["track"] for row in csv.DictReader(file) if row["listener"] == listener}
    return sorted(numbers[track] for track in tracks if track in numbers)


def infer(url: str, number: int, seen: list[int], step: str) -> dict[str, Any]:
    """Of this version and no other: numbers mean nothing without its table."""
    row = seen + [-1] * (UNIT - len(seen) % UNIT)
    inputs = [
        {"name": "user", "shape": [1, 1], "datatype": "INT64", "data": [number]},
        {"name": "seen", "shape": [1, len(row)], "datatype": "INT64", "data": row},
    ]
    body = json.dumps({"inputs": inputs}).encode()
    path = f"{url}/v2/models/recommender/versions/{step}/infer"
    with urllib.request.urlopen(urllib.request.Request(path, body), timeout=10) as answer:
        return json.load(answer)  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask for recommendations.")
    parser.add_argument("listener", nargs="?", default="listener-0", help="default: listener-0")
    parser.add_argument("--url", default=URL, help=f"default: {URL}")
    options = parser.parse_args()
    try:
        with urllib.request.urlopen(f"{options.url}/v2/models/recommender", timeout=10) as answer:
            version = json.load(answer)["versions"][0]
        step = version.partition("-")[0]
        known = table(step)
        if options.listener not in known["users"]:
            parser.error(f"version {version} knows no {options.listener!r}")
        seen = played(options.listener, known["items"])
        found = infer(options.url, known["users"].index(options.listener), seen, step)
    except urllib.error.HTTPError as error:
        parser.exit(1, f"{error.code}: {error.read().decode()}\n")
    except urllib.error.URLError as error:
        parser.exit(1, f"{options.url} does not answer: {error.reason}\n")
    except OSError as error:
        parser.exit(1, f"{error}\n")
    items, scores = (output["data"] for output in found["outputs"])
    print(f"{options.listener}, by version {found['model_version']}, {len(seen)} played already:")
    for item, score in zip(items, scores, strict=True):
        if item < 0:  # there are fewer left
            continue
        name = known["items"][item] if item < len(known["items"]) else f"(number {item})"
        print(f"{score:7.2f}  {name}")


if __name__ == "__main__":
    main()
