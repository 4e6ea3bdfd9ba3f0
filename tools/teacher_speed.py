"""How fast prepare/teacher.py writes texts: many together against one after the other.

    python tools/teacher_speed.py --ckpt=out/python_cpu
    python tools/teacher_speed.py --rows=64 --top_k=0 --top_p=1

Both write for some seconds in turn, several times over; medians are printed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import statistics
import time

from tqdm import tqdm

from parts import configurator
from prepare import teacher


class Settings(teacher.Settings):
    _script = "prepare/teacher.py"
    ckpt = ""  # a run's folder; empty: newest run
    rounds = 5  # how often each is measured
    seconds = 3.0  # of each measurement


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, ("rounds", "seconds", "rows"))
    cfg.clean, cfg.seed, many = 0.0, cfg.seed or 1, cfg.rows
    rates = {1: [], many: []}
    for _, rows in tqdm([(n, rows) for n in range(cfg.rounds) for rows in rates]):
        cfg.rows, cfg.queue = rows, 10**9
        rates[rows].append(tokens_per_second(cfg))
    for rows, values in rates.items():
        low, high = min(values), max(values)
        middle = statistics.median(values)
        print(f"{rows:4} together {middle:9,.0f} tokens/s ({low:,.0f} to {high:,.0f})")
    ratios = [b / a for a, b in zip(*rates.values())]
    print(f"{statistics.median(ratios):.1f} times as many ({min(ratios):.1f} to {max(ratios):.1f})")


def tokens_per_second(cfg) -> float:
    feed = teacher.Feed(cfg)
    feed.start()
    counts = feed.author.engine.counts
    while counts["steps"] < 10:  # all is warm by then
        time.sleep(0.05)
    before, began = counts["written"], time.perf_counter()
    time.sleep(cfg.seconds)
    rate = (counts["written"] - before) / (time.perf_counter() - began)
    feed.close()
    return rate


if __name__ == "__main__":
    run_script(main)
