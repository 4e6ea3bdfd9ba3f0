"""One idea against today's settings, recorded so that others can judge it: leaderboard.py --try.

The settings of the command line are "today"; each entry of --try is those and some more. All take
turns, seed by seed: first for equal tokens (where the command line has --max_iters, which are
today's steps), then for equal time (where it has --seconds). Compared are bits per byte of the same
held-out text, so an entry may have another data set, if that holds out the same text in other
tokens. Unless the command line says otherwise, a run is evaluated once, at its end, on at least 100
batches: with 10 of them the choice of text matters as much as most ideas do.

An idea is kept if at equal time it is better by more than the seeds differ. At equal tokens a
slower model may look better than it is.
"""

import math
import re
import shlex
import statistics
from pathlib import Path

import train
from parts import configurator, plots
from parts.stream import open_dataset
from tools import trials

TODAY = "today"
# What the experiment decides, so that the entries differ in nothing else.
DECIDED = """seed max_iters max_minutes max_train_minutes out_dir eval_iters eval_interval
    log_interval init_from""".split()


def tries(text: str) -> dict[str, list[str]]:
    """The entries of --try: name and settings. ValueError where that is not what the text is."""
    found = {TODAY: []}
    for part in re.split(r"\s+/\s+", text.strip()):
        named = re.fullmatch(r"(?:([^-\s][^:=]*):(?:\s+|$))?(.*)", part, re.DOTALL)
        name, settings = named.groups()
        words = shlex.split(settings)
        short = " ".join(Path(word).name if "/" in word else word.lstrip("-") for word in words)
        name = re.sub(r"[^\w .,+=-]", "_", name or short).strip()
        if not words:
            raise ValueError(f"--try={text!r} has an entry without settings")
        if name in found or len(name) > 60:
            raise ValueError(f"give {name!r} in --try a short name of its own: 'name: --settings'")
        for word in words:
            key = word[2:].partition("=")[0]
            if key in DECIDED:
                raise ValueError(f"an experiment decides {key} itself; take --{key} out of --try")
        found[name] = words
    return found


def compare(cfg, board: trials.Board) -> trials.Record:
    """Train all entries of --try, and today's settings beside them."""
    rounds = [limit for limit in ("max_iters", "seconds") if trials.given(limit)]
    if not rounds or "seconds" in rounds and not cfg.seconds:
        configurator.die("give --max_iters=N for equal tokens, --seconds=S for equal time, or both")
    with configurator.mistakes():
        entries = tries(cfg.try_)
    arguments, settings, jobs = trials.precise(cfg), {}, {}
    for name, words in entries.items():
        one = settings[name] = train.read_settings(train.Settings, [*arguments, *words])
        # As many tokens are looked at, however they are divided.
        size = one.batch_size * one.block_size
        looked_at = math.ceil(trials.batches(cfg) * cfg.batch_size * cfg.block_size / size)
        jobs[name] = [*arguments, *words, f"--eval_iters={looked_at}"]
    with configurator.mistakes():
        data = {name: open_dataset(one.dataset, one.block_size) for name, one in settings.items()}
        note = same_text(data)
        record = trials.begin("experiment", " ".join(cfg.why.split()), cfg)
    record |= dict(unit="bits per byte", rounds=[], notes=[note])
    for limit in rounds:
        found = board.in_turns(
            cfg.seeds,
            {name: [*job, *limits(cfg, limit, settings[name])] for name, job in jobs.items()},
            f", {'time' if limit == 'seconds' else 'tokens'}",
        )
        tokens = f"{cfg.max_iters * a_step(settings[TODAY]):,} tokens each"
        what = f"{cfg.seconds:g} s of training each" if limit == "seconds" else tokens
        factors = {name: bits(one) for name, one in data.items()}
        alike = {name for name, one in data.items() if text(one) == text(data[TODAY])}
        runs = trials.summaries(found, factors, alike)
        limited = "time" if limit == "seconds" else "tokens"
        record["rounds"].append(dict(limit=limited, what=what, runs=runs))
    return trials.thinned(record)


def a_step(settings) -> int:
    """Tokens of a step."""
    return settings.batch_size * settings.grad_accum * settings.block_size


def limits(cfg, limit: str, settings) -> list[str]:
    """What ends a run of an entry. Equal tokens are other steps where a step has other tokens."""
    if limit == "seconds":
        return trials.by_seconds(cfg.seconds)
    tokens = cfg.max_iters * cfg.batch_size * cfg.grad_accum * cfg.block_size
    return trials.by_steps(max(1, round(tokens / a_step(settings))))


def same_text(data: dict) -> str:
    """What is compared. ValueError where entries hold out different text."""
    held_out = {name: one.meta["val"] for name, one in data.items()}
    sizes = {name: (val["bytes"], val.get("learnt_bytes")) for name, val in held_out.items()}
    for name, size in sizes.items():
        if size != sizes[TODAY]:
            raise ValueError(
                f"{name!r} holds out {size[0]:,} bytes of text, today's data {sizes[TODAY][0]:,}: "
                "losses on different text cannot be compared"
            )
    if len({one.folder for one in data.values()}) == 1:
        return "compared: bits per byte of the same held-out text"
    held = (f"{val['bytes'] / val['tokens']:.2f} for {name}" for name, val in held_out.items())
    return (
        "compared: bits per byte of held-out text of the same length, in the tokens of each "
        f"entry's own data set; bytes in a token: {', '.join(held)}"
    )


def text(dataset) -> int | str:
    """What tells whether two data sets have the same text to train on, in whatever tokens."""
    return dataset.meta["train"]["bytes"] if "train" in dataset.meta else str(dataset.folder)


def bits(dataset) -> float:
    """Bits per byte of the text to train on, times nats per token; of a stream, that held out."""
    split = dataset.meta.get("train") or dataset.meta["val"]
    return split["tokens"] / split["bytes"] / math.log(2)


# --- the report -----------------------------------------------------------------------------------


def report(record: trials.Record) -> str:
    """The record in Markdown."""
    first = record["rounds"][0]["runs"]
    tried = ", ".join(name for name in first if name != TODAY)
    lines = [f"### {record['date']}: {tried}\n", "- hypothesis: " + (record["title"] or "not told")]
    lines += [f"- command: `{record['command']}`", f"- machine: {record['machine']}"]
    seeds = configurator.counted(len(first[TODAY]), "seed")
    lines += [f"- {note}" for note in record["notes"]]
    lines.append(f"- mean ± standard deviation of {seeds}, which took turns\n")
    for one in record["rounds"]:
        lines += [f"Equal {one['limit']}: {one['what']}\n", rows(one["runs"])]
    lines += [verdict(record, name) for name in first if name != TODAY]
    return "\n".join(lines) + "\n\n"


def rows(runs: dict[str, list[trials.Run]]) -> str:
    columns = ["", "bits per byte", "against today", "each seed's difference", "steps"]
    columns += ["ms per step", "tokens until today's final training loss (today: 100%)"]
    today, lines = [run["bits_per_byte"] for run in runs[TODAY]], []
    for name, found in runs.items():
        losses = [run["bits_per_byte"] for run in found]
        steps, seconds = trials.mean(found, "steps"), trials.mean(found, "seconds")
        shares = [run["of_tokens"] for run in found]
        soon = "not reached" if None in shares else f"{statistics.median(shares):.0%}"
        change = 100 * (statistics.mean(losses) / statistics.mean(today) - 1)
        line = [name, trials.with_spread(losses)]
        if name == TODAY:
            line, soon = [*line, "", ""], "100%"
        else:
            line += [f"{change:+.2f} %", ", ".join(f"{a - b:+.4f}" for a, b in zip(losses, today))]
        lines.append([*line, f"{steps:.0f}", f"{1000 * seconds / steps:.0f}", soon])
    return trials.table(columns, lines)


def verdict(record: trials.Record, name: str) -> str:
    """Kept if better at equal time by more than the seeds differ; nothing else decides."""
    timed = next((one["runs"] for one in record["rounds"] if one["limit"] == "time"), None)
    if not timed:
        return f"- **{name}: not kept**, as nothing was trained for equal time (--seconds)"
    today, tried = ([run["bits_per_byte"] for run in timed[key]] for key in (TODAY, name))
    if len(today) < 2:
        return f"- **{name}: not kept**, as one seed does not tell an idea from chance"
    gain = statistics.mean(today) - statistics.mean(tried)
    seeds = max(trials.spread(today), trials.spread(tried))
    kept = "kept" if gain > seeds else "not kept"
    how = f"{abs(gain):.4f} bits per byte {'better' if gain > 0 else 'worse'}"
    return f"- **{name}: {kept}**: at equal time {how}; the seeds differ by {seeds:.4f}"


def draw(record: trials.Record, file: Path) -> bool:
    """Training losses, over tokens for equal tokens and over seconds for equal time."""
    names = {"tokens": "tokens", "time": "seconds"}
    panels = [
        plots.panel(one["runs"], names[one["limit"]], "bits per byte", f"equal {one['limit']}")
        for one in record["rounds"]
    ]
    return plots.curves(panels, file)
