"""What a checkpoint has learnt, in numbers that tell small models apart.

    python eval.py --ckpt=out/python_cpu
    python eval.py --ckpt=out/python_cpu --tasks=loss,completion,humaneval --allow_code_execution
    python eval.py --compare out/a out/b pythia-folder     # what their eval.json say: one table, and out/compare.png

loss         the whole validation split, each token once: nats per token, perplexity, bits per byte (comparable across
             tokenizers), how often the right token is the first guess or among the first five; for code by class of token
completion   held-out code cut inside a line (line), at a line's end (next) and at a signature (body), and continued greedily:
             exact match and edit similarity as in CodeXGLUE, BLEU, first token right, file still parses; in percent
bodies       bodies sampled for functions of held-out Python files: how many parse
humaneval    Chen et al. 2021; humaneval-x: its Go part (Zheng et al. 2023); mine: tasks/*.jsonl, yours to extend. Bits per byte
             of the known solution given the prompt; how often the model finds it likelier than a mutant of it (choice2, chance
             0.5) and than all nine (choice10, chance 0.1); and with --allow_code_execution pass@k of sampled programs

Prints a table and writes eval.json into the run's folder, beside what other tasks have told of the same weights.
"""

import ast
import copy
import gzip
import json
import keyword
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from parts import configurator
from tasks import sandbox as execute
import sample
from parts import tokenizer as tokenizers
from parts import tracking
from model import generation_dtype


class Settings:
    ckpt = ""  # a run's folder, a checkpoint file, or a Hugging Face folder or hub name; empty: the newest run in out/
    dataset = ""  # a folder under data/; empty: the one that the run was trained on
    tasks = ""  # of those above, with commas; empty: loss, and for code completion and mine
    stride = 0  # tokens from one window of the loss to the next; fewer than the context gives each more to go by; 0: no overlap
    num_completions = 100  # cuts of each of the three kinds
    num_bodies = 50  # function bodies to write
    num_samples = 1  # programs written for each problem; pass@k is told for k up to that
    max_new_tokens = 200  # tokens in a body or program at most
    temperature = 0.2  # of sampling: low, as for pass@1 in Chen et al. 2021
    top_p = 0.95  # choose among the likeliest tokens that together have this probability
    allow_code_execution = False  # run sampled programs, in a sandbox (Linux with bubblewrap), to see whether they pass
    file = ()  # problems of humaneval or humaneval-x (.jsonl, .jsonl.gz) instead of downloading them; may be given several times
    language = ""  # python or go, of the task mine; empty: that of the data set
    show = 3  # bodies to print
    dtype = "auto"  # of the network: the fastest, or float32 for the last digits of the loss; the output head is in float32
    seed = 1337  # of the choice of cuts and functions, and of sampling
    device = "auto"  # auto, cpu, cuda, mps


TASKS = ("loss", "completion", "bodies", "humaneval", "humaneval-x", "mine")
URLS = {
    "humaneval": "https://github.com/openai/human-eval/raw/master/data/HumanEval.jsonl.gz",
    "humaneval-x": "https://github.com/THUDM/CodeGeeX/raw/main/codegeex/benchmark/humaneval-x/go/data/humaneval_go.jsonl.gz",
}


# Likelihood: what the loss and the choices are made of.


def windows(length, context, stride, first=1):
    """(begin, first, end): read tokens begin .. end - 2 to score tokens first .. end - 1. Together they score each token from
    `first` on once, with at least context - stride tokens before it in sight (where there are as many)."""
    begin = max(0, min(first - 1 - (context - stride), length - 1 - context))
    while first < length:
        end = min(begin + context + 1, length)
        yield begin, first, end
        first, begin = end, end - 1 - (context - stride)


@torch.inference_mode()
def score(model, sequences, starts, stride, name, head):
    """For each sequence of token ids two arrays as long as it is: each token's surprise in nats, and its rank, the number of
    tokens that the model found likelier. Both 0 before the sequence's `start`. The network runs in the dtype of its weights, the
    output head in float32 with the weight `head`: in bfloat16 too many tokens would be equally likely to be ranked."""
    device, context = model.cos.device, model.config.block_size
    tokens = 1024 if device.type == "cpu" else 16384  # in a batch: as many as a CPU's cache holds activations of
    results = [(np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int32)) for ids in sequences]
    jobs = [(n, *window) for n, ids in enumerate(sequences) for window in windows(len(ids), context, stride, starts[n])]
    jobs.sort(key=lambda job: job[1] - job[3])  # longest first; the sort is stable
    with tqdm(total=len(jobs), desc=name, unit="window", leave=False, disable=None) as bar:
        while jobs:
            size = max(tokens // (jobs[0][3] - jobs[0][1]), 1)
            part, jobs = jobs[:size], jobs[size:]
            x = np.zeros((len(part), part[0][3] - part[0][1] - 1), np.int64)  # (B, T), filled up on the right, where nobody looks
            for row, (n, begin, _, end) in enumerate(part):
                x[row, : end - begin - 1] = sequences[n][begin : end - 1]
            h = model.hidden(torch.from_numpy(x).to(device))  # (B, T, C)
            h = torch.cat([h[row, first - begin - 1 : end - begin - 1] for row, (_, begin, first, end) in enumerate(part)])
            y = np.concatenate([np.asarray(sequences[n][first:end], np.int64) for n, _, first, end in part])
            nats, ranks = [], []
            for h, y in zip(h.split(512), torch.from_numpy(y).to(device).split(512)):  # few enough logits for a CPU's cache
                logits = h.float() @ head.T  # (rows, V)
                nats.append(F.cross_entropy(logits, y, reduction="none").cpu())
                ranks.append((logits > logits.gather(1, y[:, None])).sum(dim=1).cpu())
            nats, ranks, done = torch.cat(nats).numpy(), torch.cat(ranks).numpy(), 0
            for n, _, first, end in part:
                for array, values in zip(results[n], (nats, ranks)):
                    array[first:end] = values[done : done + end - first]
                done += end - first
            bar.update(len(part))
    return results


def loss_task(model, head, tokenizer, tokens, meta, cfg, language):
    """Exact loss over the split, all tokens but the first; by class of token where the language is known."""
    context = model.config.block_size
    [(nats, ranks)] = score(model, [tokens], [1], min(cfg.stride or context, context), "loss", head)
    nats, ranks = nats[1:].astype(np.float64), ranks[1:]
    loss = nats.mean()
    report = {"loss": loss, "perplexity": math.exp(min(loss, 700)),
              "bits_per_byte": loss / math.log(2) * len(tokens) / meta["val"]["bytes"],
              "top1": (ranks == 0).mean(), "top5": (ranks < 5).mean()}  # fmt: skip
    if language:
        classes = token_classes(tokens, tokenizer, language)[1:]
        for number, name in enumerate(CLASSES):
            if (of := classes == number).any():
                report |= {f"loss_{name}": nats[of].mean(), f"top1_{name}": (ranks[of] == 0).mean(), f"share_{name}": of.mean()}
    return {key: float(value) for key, value in report.items()}


# Code: its documents, its classes of token, its functions.

CLASSES = ("identifier", "keyword", "operator", "literal", "whitespace", "comment")  # comments with Python's docstrings
KEYWORDS = {
    "python": set(keyword.kwlist),
    "go": set("break case chan const continue default defer else fallthrough for func go goto if import interface map package "
              "range return select struct switch type var".split()),
}  # fmt: skip
REST = rb"""
    | (?P<literal> (?:\d|\.\d)(?:[eEpP][+-]\d|[\w.])*)
    | (?P<word> [A-Za-z_\x80-\xff][\w\x80-\xff]*)
    | (?P<whitespace> \s+)
    | (?P<operator> := | [-+*/%&|^<>=!~]+ | .)"""
LEXERS = {
    "python": re.compile(rb"""(?P<comment> \#[^\n]*)
        | (?P<string> (?:[rRbBuUfF]{1,2})? (?: \"\"\"(?:\\.|[^\\])*?\"\"\" | '''(?:\\.|[^\\])*?'''
                                              | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'))""" + REST, re.X | re.S),
    "go": re.compile(rb"""(?P<comment> //[^\n]* | /\*.*?\*/)
        | (?P<string> "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])+' | `[^`]*`)""" + REST, re.X | re.S),
}  # fmt: skip


def lex(source, language):
    """(class, begin, end) for each piece of the source, bytes. A triple-quoted string that is a statement after a colon, or the
    file's first, is a docstring, and so a comment."""
    before, fresh = None, True  # the last piece of code, and whether a new line has begun since
    for match in LEXERS[language].finditer(source):
        kind, text = match.lastgroup, match[0]
        if kind == "word":
            kind = "keyword" if text.decode(errors="replace") in KEYWORDS[language] else "identifier"
        if kind == "string":
            docstring = language == "python" and before in (None, b":") and fresh and text[-3:] in (b'"""', b"'''")
            kind = "comment" if docstring else "literal"
        yield kind, match.start(), match.end()
        if kind == "whitespace":
            fresh = fresh or b"\n" in text
        elif kind != "comment":
            before, fresh = text, False


def documents(tokens, tokenizer):
    """(begin, end) of each document, without the end-of-text token."""
    ends = np.flatnonzero(tokens == tokenizer.eot) if tokenizer.eot is not None else np.zeros(0, np.int64)
    ends = ends if len(ends) and ends[-1] == len(tokens) - 1 else np.r_[ends, len(tokens)]
    return list(zip(np.r_[0, ends[:-1] + 1].tolist(), ends.tolist()))


def token_classes(tokens, tokenizer, language):
    """The index in CLASSES of each token: that of its first byte that is not whitespace, else of its first; -1 for end of text."""
    texts = {i: tokenizer.token_bytes(i) for i in np.unique(tokens).tolist() if i not in tokenizer.special.values()}
    classes = np.full(len(tokens), -1, np.int8)
    for begin, end in documents(tokens, tokenizer):
        pieces = [texts.get(i, b"") for i in tokens[begin:end].tolist()]
        source, of_byte = b"".join(pieces), []
        for kind, first, last in lex(source, language):
            of_byte.append(np.full(last - first, CLASSES.index(kind), np.int8))
        of_byte, at = np.concatenate([*of_byte, np.zeros(0, np.int8)]), 0
        for number, piece in enumerate(pieces, begin):
            skip = len(piece) - len(piece.lstrip())
            if piece:
                classes[number] = of_byte[at + (skip if skip < len(piece) else 0)]
            at += len(piece)
    return classes


def detect_language(tokens, tokenizer):
    """python, go or "", by what most of the first 20 documents hold."""
    if tokenizer.eot is None:
        return ""
    texts = [tokenizer.decode(tokens[begin:end].tolist()) for begin, end in documents(tokens, tokenizer)[:20]]
    for language, sign in (("go", r"(?m)^package \w+"), ("python", r"(?m)^\s*(def \w+\(|import \w+|from [\w.]+ import )")):
        if 2 * sum(bool(re.search(sign, text)) for text in texts) > len(texts):
            return language
    return ""


def parse(source):
    """The syntax tree that Python's own parser makes of the text, or None. Nothing in the text is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape in a sampled string is not our news
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def parses(source, language):
    """Whether the text is a file of the language, by Python's parser or gofmt; None where there is no gofmt."""
    if language == "python":
        return parse(source) is not None
    if not shutil.which("gofmt"):
        return None
    return subprocess.run(["gofmt"], input=source.encode(), capture_output=True).returncode == 0


def functions(text, language="python"):
    """(first line, last line) of the headers of all functions, from 0, the last one not included. The header is the signature
    with the docstring, where there is one."""
    if language == "go":
        return [(n, n + 1) for n, line in enumerate(text.split("\n")) if line.startswith("func ") and line.endswith("{")]
    found = []
    for node in ast.walk(parse(text) or ast.Module([])):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node, clean=False) is not None
            last = node.body[0].end_lineno if documented else node.body[0].lineno - 1
            if last >= node.lineno and len(node.body) > documented:  # neither on one line nor nothing but its docstring
                found.append((node.lineno - 1, last))
    return found


def body(text, indentation, language="python"):
    """The function body that a completion of a header begins with: up to the first line that is no deeper than the header, with
    it if that is Go's closing brace, and whole lines only. Also whether that line was reached."""
    lines = text.split("\n")
    for number, line in enumerate(lines[1:], 1):
        if line.strip() and len(line) - len(line.lstrip()) <= len(indentation):
            if language == "go" and line.startswith(indentation + "}"):
                return "\n".join([*lines[:number], indentation + "}"]), True
            return "\n".join(lines[:number]), True
    return "\n".join(lines[:-1]), False


# Completions.


def complete(model, tokenizer, prompts, cfg, temperature, stop, name):
    """Continue texts: for each, the text added, and whether it came to an end. stop(text) tells whether enough was written; that
    text begins with the prompt's last token, which is written anew (see Tokenizer.heal)."""
    room, specials = model.config.block_size * 3 // 4, set(tokenizer.special.values())
    start = [] if tokenizer.eot is None else [tokenizer.eot]
    rows, healings, results = [], {}, {}
    for number, prompt in enumerate(prompts):
        ids = start + tokenizer.encode(prompt)
        if ids[-1] not in healings:  # it reads the whole vocabulary
            healings[ids[-1]] = tokenizer.heal([0, ids[-1]])[1:]
        healed, first = healings[ids[-1]]
        rows.append((number, (ids[:-1] if first else ids)[-room:], len(healed), first))
    rows.sort(key=lambda row: len(row[1]))
    for i in tqdm(range(0, len(rows), 20), desc=name, unit="batch", leave=False, disable=None):
        part = rows[i : i + 20]
        outputs = model.generate(
            [ids for _, ids, _, _ in part], cfg.max_new_tokens, temperature=temperature, top_p=cfg.top_p, stop_ids=specials,
            stop=lambda output: stop(sample.completion(tokenizer, output, 0, ())),
            first_ids=[first for _, _, _, first in part] if part[0][3] else None, seed=cfg.seed + i,
        )  # fmt: skip
        for (number, _, healed, _), output in zip(part, outputs):
            text, ended = sample.completion(tokenizer, output, healed, ()), output[-1] in specials
            results[number] = text + "\n" * ended, ended or stop(text)
    return [results[number] for number in range(len(prompts))]


def write_bodies(model, tokenizer, headed, cfg, temperature, language, name):
    """Bodies for functions given as (all text up to the header's end, indentation): for each its text, and whether it came to
    an end."""
    results = [None] * len(headed)
    for indentation in sorted({indentation for _, indentation in headed}):
        chosen = [n for n, (_, other) in enumerate(headed) if other == indentation]
        stop = lambda text: body(text, indentation, language)[1]  # noqa: B023, E731
        written = complete(model, tokenizer, [headed[n][0] for n in chosen], cfg, temperature, stop, name)
        for n, (text, ended) in zip(chosen, written):
            results[n] = body(text, indentation, language)[0], ended
    return results


def draw(tokens, tokenizer, language, kind, count, seed):
    """`count` places of one kind in documents of the split, as (text before, target, text after, indentation, header). line: amid
    a line of code, up to its end. next: after a line of code, with the next one. body: after a function's header, its body."""
    spans, drawn = documents(tokens, tokenizer), 0
    rng = random.Random(f"{seed} {kind}")
    rng.shuffle(spans)
    for begin, end in spans * count:
        if drawn == count:
            return
        text = tokenizer.decode(tokens[begin:end].tolist())
        lines = text.split("\n")
        starts = np.cumsum([0] + [len(line) + 1 for line in lines]).tolist()
        indent = lambda n: lines[n][: len(lines[n]) - len(lines[n].lstrip())]  # noqa: B023, E731
        if language == "python" and parse(text) is None:
            continue
        if kind == "body":
            places = functions(text, language)
        else:
            at_byte = np.cumsum([0] + [len(line.encode()) + 1 for line in lines])
            code = {first for name, first, _ in lex(text.encode(), language) if name in ("identifier", "keyword", "operator")}
            first = lambda n: at_byte[n] + len(indent(n).encode())  # noqa: B023, E731
            of_code = [n for n in range(1, len(lines)) if len(lines[n].strip()) > 3 and first(n) in code]
            places = of_code if kind == "line" else list(zip(of_code, of_code[1:]))
        if not places:
            continue
        place = rng.choice(places)
        if kind == "line":
            cut, indentation = starts[place] + rng.randrange(len(indent(place)) + 1, len(lines[place])), indent(place)
            target = text[cut : starts[place + 1] - 1]
        elif kind == "next":
            cut, indentation = starts[place[0] + 1] - 1, indent(place[1])
            target = re.match(r"\s*[^\n]*", text[cut:])[0]
        else:
            cut, indentation = starts[place[1]] - 1, indent(place[0])
            target = body(text[cut:] + "\n", indentation, language)[0]
        if target.strip():
            drawn += 1
            header = "\n".join(lines[place[0] : place[1]]) if kind == "body" else ""
            yield text[:cut], target, text[cut + len(target) :], indentation, header


def exact_match(prediction, reference):
    """As in CodeXGLUE's line completion: the same but for whitespace."""
    return prediction.split() == reference.split()


def edit_similarity(a, b):
    """0 to 100, whole numbers: CodeXGLUE's, which is fuzzywuzzy's ratio, twice the length of the longest common subsequence over
    both lengths."""
    from rapidfuzz import fuzz

    return round(fuzz.ratio(a, b))


def bleu(predictions, references):
    """Corpus BLEU, 0 to 100, as sacrebleu computes it by default (Post 2018)."""
    import sacrebleu

    return sacrebleu.corpus_bleu(predictions, [references]).score


def first_piece(tokenizer, before, target):
    """The bytes of the target in the first token of the whole text that reaches beyond the cut."""
    cut, end = len(before.encode()), 0
    for i in tokenizer.encode(before + target):
        end += len(tokenizer.token_bytes(i))
        if end > cut:
            return target.encode()[: end - cut]


def completion_task(model, tokenizer, tokens, cfg, language):
    """The metrics of the three kinds of cut, each by kind_metric, in percent."""
    report = {}
    for kind in ("line", "next", "body"):
        places = list(draw(tokens, tokenizer, language, kind, cfg.num_completions, cfg.seed))
        if not places:
            continue
        if kind == "body":
            headed = [(before, indentation) for before, _, _, indentation, _ in places]
            texts = [text for text, _ in write_bodies(model, tokenizer, headed, cfg, 0, language, kind)]
        else:
            stop = re.compile(r"\n" if kind == "line" else r"\n\s*\S[^\n]*\n").search
            end = re.compile(r"[^\n]*" if kind == "line" else r"\s*[^\n]*").match
            texts = [end(text)[0] for text, _ in complete(model, tokenizer, [place[0] for place in places], cfg, 0, stop, kind)]
        pairs = [(text.strip(), target.strip()) for text, (_, target, *_) in zip(texts, places)]
        first = [text.encode().startswith(first_piece(tokenizer, *place[:2])) for text, place in zip(texts, places)]
        whole = [parses(before + text + after, language) for text, (before, _, after, *_) in zip(texts, places)]
        report |= {
            f"{kind}_exact": 100 * np.mean([exact_match(*pair) for pair in pairs]),
            f"{kind}_edit": np.mean([edit_similarity(*pair) for pair in pairs]),
            f"{kind}_bleu": bleu(*map(list, zip(*pairs))),
            f"{kind}_first": 100 * np.mean(first),
        }
        if None not in whole:
            report[f"{kind}_parse"] = 100 * np.mean(whole)
    return {key: float(value) for key, value in report.items()}


def bodies_task(model, tokenizer, tokens, cfg):
    """Sampled bodies for functions of held-out Python files: how many ended, how many parse with their header. Prints some."""
    places = list(draw(tokens, tokenizer, "python", "body", cfg.num_bodies, cfg.seed))
    headed, good = [(before, indentation) for before, _, _, indentation, _ in places], []
    written = write_bodies(model, tokenizer, headed, cfg, cfg.temperature, "python", "bodies")
    for number, ((*_, header), (text, _)) in enumerate(zip(places, written)):
        good.append(bool(text.strip()) and parse(textwrap.dedent(header + text)) is not None)
        if number < cfg.show:
            print(f"{'-' * 30} {'parses' if good[-1] else 'does not parse'}\n{header + text}")
    ended = sum(ended for _, ended in written)
    return {"bodies": len(good), "ended": ended, "parse": sum(good), "parse_share": sum(good) / max(len(good), 1)}


# Problems: a prompt, a known solution, and tests.


def read_problems(name, cfg, language):
    """The problems of humaneval, humaneval-x or mine, from --file, tasks/ or the web, as dicts with keys id, language, prompt,
    solution, and what tasks/sandbox.py takes. ValueError or OSError says what is wrong."""
    kind = {"humaneval": "python", "humaneval-x": "go", "mine": language}[name]
    if name == "mine":
        files = [Path(__file__).resolve().parent / "tasks" / f"{kind}.jsonl"]
    else:
        files = [configurator.locate(file) for file in cfg.file] or [fetched(URLS[name])]
    problems = []
    for file in files:
        data = file.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        for number, line in enumerate(data.decode("utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                if ("declaration" in row) != (kind == "go") and name != "mine":
                    continue  # the other benchmark's
                problems.append({"id": row["task_id"], "language": kind, "prompt": row["prompt"], "solution": row["canonical_solution"],
                                 "test": row["test"], "name": row.get("entry_point", ""), "import": row.get("import", ""),
                                 "test_setup": row.get("test_setup", "")})  # fmt: skip
            except (ValueError, KeyError, TypeError) as error:
                why = f"it lacks {error}" if isinstance(error, KeyError) else error
                raise ValueError(f"{file}, line {number}, is not a problem in HumanEval's format: {why}") from None
    if not problems:
        raise ValueError(f"{', '.join(map(str, files))} holds no problem of {name}")
    return problems


def fetched(url):
    """The file in data/ that the url was once downloaded to."""
    file = configurator.ROOT / "data" / url.split("/")[-1]
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                data = answer.read()
        except OSError as error:
            raise ValueError(f"{url} could not be downloaded ({error}); save it as {file}") from None
        file.with_name(file.name + ".tmp").write_bytes(data)
        os.replace(file.with_name(file.name + ".tmp"), file)
    return file


def mutants(problem, count=9):
    """Different corruptions of the known solution, the same ones every time. In turn, each at a random place:
    exchange    two neighbouring pieces of code (of `lex`) change places
    replace     a piece of code becomes another of its class that stands in the prompt or the solution
    reorder     two neighbouring lines change places
    None changes the length by much, for a shorter text is likelier. Now and then one is a correct program all the same."""
    source = problem["solution"]
    def pieces(text):
        return [(kind, text.encode()[begin:end].decode()) for kind, begin, end in lex(text.encode(), problem["language"])]

    solution, made = pieces(source), [source]
    code = [n for n, (kind, _) in enumerate(solution) if kind not in ("whitespace", "comment")]
    known = set(solution) | set(pieces(problem["prompt"]))
    lines = [n for n, line in enumerate(source.split("\n")) if line.strip()]
    for number in range(count):
        rng = random.Random(f"{problem['id']} {number}")
        for attempt in range(100):
            changed, how = list(solution), (number + attempt) % 3
            if how == 0 and len(code) > 1:
                n = rng.randrange(len(code) - 1)
                changed[code[n]], changed[code[n + 1]] = changed[code[n + 1]], changed[code[n]]
            elif how == 1 and code:
                n = rng.choice(code)
                others = sorted(piece for piece in known if piece[0] == changed[n][0] and piece != changed[n])
                changed[n] = rng.choice(others or [changed[n]])
            mutant = "".join(text for _, text in changed)
            if how == 2 and len(lines) > 1:
                rows, n = source.split("\n"), rng.randrange(len(lines) - 1)
                rows[lines[n]], rows[lines[n + 1]] = rows[lines[n + 1]], rows[lines[n]]
                mutant = "\n".join(rows)
            if mutant not in made:
                made.append(mutant)
                break
    return made[1:]


def pass_at_k(n, c, k):
    """The chance that k of n programs, c of them correct, hold a correct one: Chen et al. 2021, the estimator of section 2.1."""
    return 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def passed(problem, text, folder):
    """Whether a body written for the problem passes its tests. folder: for Go's compiler."""
    if problem["language"] == "python":
        return execute.run_python(problem["prompt"] + text, problem["name"], problem["prompt"], problem["test"])[0]
    program = problem["prompt"].replace(problem["import"], "", 1) + text  # it gets those that it uses
    return execute.run_go(program, problem["test"], problem["test_setup"], folder)[0]


def likelihood(name, problems, model, head, tokenizer):
    """Bits per byte of the known solutions given their prompts, and how often they win against their mutants."""
    start, sequences, starts = [] if tokenizer.eot is None else [tokenizer.eot], [], []
    for problem in problems:
        prompt = len(problem["prompt"].encode())
        for solution in [problem["solution"], *mutants(problem)]:
            ids = start + tokenizer.encode(problem["prompt"] + solution)
            ends = np.cumsum([0 if i == tokenizer.eot else len(tokenizer.token_bytes(i)) for i in ids])
            sequences.append(ids)
            starts.append(max(int(np.searchsorted(ends, prompt, "right")), 1))  # the first token that ends in the solution
    scores = score(model, sequences, starts, max(model.config.block_size // 2, 1), name, head)
    nats = iter([float(array.sum(dtype=np.float64)) for array, _ in scores])
    total, wins, best = 0.0, [], []
    for problem in problems:
        known, *others = [next(nats) for _ in range(1 + len(mutants(problem)))]
        total += known
        wins.append(np.mean([known < other for other in others]))
        best.append(known < min(others))
    size = sum(len(problem["solution"].encode()) for problem in problems)
    return {"bits_per_byte": total / math.log(2) / size, "choice2": float(np.mean(wins)), "choice10": float(np.mean(best))}


def pass_rates(name, problems, model, tokenizer, cfg):
    """pass@k of cfg.num_samples programs for each problem, for k of 1, 10 and 100 as far as there are as many."""
    n = cfg.num_samples
    headed = [(problem["prompt"], "") for problem in problems for _ in range(n)]
    language = problems[0]["language"]
    texts = [text for text, _ in write_bodies(model, tokenizer, headed, cfg, cfg.temperature, language, name)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count() if language == "python" else 1) as pool:
        jobs = pool.map(lambda job: passed(problems[job // n], texts[job], folder), range(len(texts)))
        passes = list(tqdm(jobs, total=len(texts), desc=f"{name}: running", unit="program", leave=False, disable=None))
    correct = np.reshape(passes, (len(problems), n)).sum(axis=1)
    return {f"pass@{k}": float(np.mean([pass_at_k(n, c, k) for c in correct])) for k in (1, 10, 100) if k <= n}


# All together.


def chosen(names):
    """The tasks in a list with commas, in the order of TASKS."""
    for name in filter(None, names.split(",")):
        if name not in TASKS:
            configurator.die(f"unknown task {name!r}; tasks are {', '.join(TASKS)}")
    return [task for task in TASKS if task in names.split(",")]


def prepared(tokenizer, tokens, tasks, cfg):
    """The language of the tokens and the problems of each task. ValueError or OSError says what is missing for the tasks."""
    language = detect_language(tokens, tokenizer) if tokens is not None else ""
    if tokens is not None and not language and {"completion", "bodies"} & set(tasks) or language == "go" and "bodies" in tasks:
        raise ValueError("the data set is not of code that completion (Python, Go) and bodies (Python) know; use --tasks=loss")
    problems = {name: read_problems(name, cfg, cfg.language or language or "python") for name in tasks if name not in TASKS[:3]}
    if cfg.allow_code_execution:
        for name, rows in problems.items():
            if reason := execute.missing(rows[0]["language"]):
                raise ValueError(f"--allow_code_execution: {reason}")
            if name == "humaneval-x" and not (Path(execute.GO_LIBRARY) / "src/github.com/stretchr/testify").is_dir():
                raise ValueError("the tests of humaneval-x need testify: apt-get install golang-github-stretchr-testify-dev")
    return language, problems


def measure(model, tokenizer, tokens, meta, tasks, cfg, ready=None):
    """The tasks' numbers, {name: value}. tokens, meta: the validation split and its meta.json, None where no task needs them;
    cfg: `Settings` or anything with its attributes; ready: what `prepared` gave. The model is left as it is."""
    language, problems = ready or prepared(tokenizer, tokens, tasks, cfg)
    report = {}
    dtype = generation_dtype(model.cos.device.type, rows=20) if cfg.dtype == "auto" else getattr(torch, cfg.dtype)
    fast, head = copy.deepcopy(model).to(dtype).eval(), model.embed_out.weight.detach().float()
    for name in tasks:
        if name == "loss":
            report |= loss_task(fast, head, tokenizer, tokens, meta, cfg, language)
        elif name == "completion":
            report |= completion_task(fast, tokenizer, tokens, cfg, language)
        elif name == "bodies":
            report |= bodies_task(fast, tokenizer, tokens, cfg)
        else:
            found = likelihood(name, problems[name], fast, head, tokenizer)
            if cfg.allow_code_execution:
                found |= pass_rates(name, problems[name], fast, tokenizer, cfg)
            report |= {f"{name}_{key}": value for key, value in found.items()}
    return report


def open_split(cfg, folder, tokenizer):
    """The validation split's tokens, in the model's own tokenizer, and meta.json of the data set that is named or that the run
    was trained on."""
    dataset = cfg.dataset
    if not dataset:
        try:
            run = folder / "run.json"
            about = json.loads((run if run.is_file() else folder / "config.json").read_text(encoding="utf-8"))
            dataset = about.get("settings", about)["dataset"]
        except (OSError, KeyError):
            raise ValueError(f"{folder} does not say what it was trained on; give --dataset=NAME") from None
    data = configurator.ROOT / "data" / dataset
    meta = json.loads((data / "meta.json").read_text(encoding="utf-8"))
    tokens = np.fromfile(data / "val.bin", dtype="<u2")
    if len(tokens) < 2:
        raise ValueError(f"{data / 'val.bin'} has too few tokens ({len(tokens)})")
    if (data / "tokenizer.json").read_bytes() != (folder / "tokenizer.json").read_bytes():
        theirs, again = tokenizers.load(data), []
        for begin, end in documents(tokens, theirs):
            again += tokenizer.encode(theirs.decode(tokens[begin:end].tolist())) + [tokenizer.eot] * (tokenizer.eot is not None)
        tokens = np.array(again, "<u2")
    return tokens, meta


def compare(folders):
    """Print the numbers of several runs beside each other, and draw them in out/compare.png."""
    reports = {}
    with configurator.mistakes():
        if len(folders) < 2:
            raise ValueError("--compare needs at least two folders: python eval.py --compare out/a out/b")
        for name in folders:
            file = configurator.locate(name) / "eval.json"
            if not file.is_file():
                raise ValueError(f"there is no {file}; make it with: python eval.py --ckpt={name}")
            found = json.loads(file.read_text(encoding="utf-8"))
            reports[name] = {key: value for key, value in found.items() if isinstance(value, (int, float))}
    keys = list(dict.fromkeys(key for report in reports.values() for key in report))
    width = max(14, *(len(Path(name).name) + 2 for name in folders))
    print(f"{'':<28}" + "".join(f"{Path(name).name:>{width}}" for name in folders))
    for key in keys:
        print(f"{key:<28}" + "".join(f"{shown(report[key]) if key in report else '-':>{width}}" for report in reports.values()))
    names = [Path(name).name for name in reports]

    def bars(key, axis):
        axis.bar(range(len(reports)), [report.get(key, math.nan) for report in reports.values()], color=[f"C{n}" for n in range(len(reports))])
        axis.set_xticks(range(len(reports)), names, fontsize=6)
        axis.set_xlim(-0.5, len(reports) - 0.5)

    file = configurator.ROOT / "out" / "compare.png"
    file.parent.mkdir(exist_ok=True)
    if panels([key for key in keys if not key.startswith("share_")], bars, file):
        print(f"drawn in {file}")


def panels(keys, draw, file):
    """A picture with a small plot for each key, which draw(key, axis) fills. Where that fails it says so and returns False."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        rows = math.ceil(len(keys) / 5)
        figure, axes = plt.subplots(rows, 5, figsize=(14, 2 * rows), squeeze=False)
        for axis in axes.flat[len(keys) :]:
            axis.axis("off")
        for key, axis in zip(keys, axes.flat):
            draw(key, axis)
            axis.set_title(key, fontsize=8)
            axis.tick_params(labelsize=6)
        figure.tight_layout()
        figure.savefig(file.with_name(file.name + ".tmp"), format="png", dpi=120)
        os.replace(file.with_name(file.name + ".tmp"), file)
        plt.close(figure)
        return True
    except Exception as error:
        tqdm.write(f"no plot: {type(error).__name__}: {error}")
        return False


def plot_scores(metrics, file):
    """Draw what train.py's --eval_tasks put in the lines of metrics.jsonl, over the steps."""
    lines = [m for m in metrics if any(key.startswith("eval_") for key in m)]

    def curve(key, axis):
        axis.plot(*zip(*((m["step"], m[key]) for m in lines if m.get(key) is not None)), marker="o", ms=3)
        axis.set_xlabel("step", fontsize=6)

    panels([key for key in lines[-1] if key.startswith("eval_") and "share" not in key], curve, file)


def shown(value):
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def main():
    if sys.argv[1:2] == ["--compare"]:
        return compare(sys.argv[2:])
    cfg = configurator.load(Settings)
    tasks, tokens, meta = chosen(cfg.tasks), None, None
    configurator.require(
        cfg, ("num_completions", "num_bodies", "num_samples", "max_new_tokens", "top_p"), device=["auto", "cpu", "cuda", "mps"],
        language=["", "python", "go"], dtype=["auto", "float32", "bfloat16", "float16"],
    )  # fmt: skip
    if cfg.top_p > 1:
        configurator.die(f"top_p is a probability, at most 1, not {cfg.top_p}")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    model, tokenizer, folder = sample.load(cfg.ckpt, device)
    with configurator.mistakes():
        if not tasks or {"loss", "completion", "bodies"} & set(tasks) or "mine" in tasks and not cfg.language:
            tokens, meta = open_split(cfg, folder, tokenizer)
        if not tasks:
            tasks = ["loss", "completion", "mine"] if detect_language(tokens, tokenizer) else ["loss"]
        ready = prepared(tokenizer, tokens, tasks, cfg)
    report = measure(model, tokenizer, tokens, meta, tasks, cfg, ready)
    print(f"\n{folder}")
    for key, value in report.items():
        print(f"{key:<28} {shown(value)}")
    if {"humaneval", "humaneval-x", "mine"} & set(tasks) and not cfg.allow_code_execution:
        print("pass@k was not measured: it runs what the model writes, and needs --allow_code_execution")
    if not configurator.locate(cfg.ckpt or folder).exists():  # from the hub, whose cache is not for writing
        folder = configurator.ROOT / "out" / cfg.ckpt.replace("/", "-")
    with configurator.mistakes():
        folder.mkdir(parents=True, exist_ok=True)
        file, whose = folder / "eval.json", lambda about: (about["dataset"], about["ckpt"].endswith(".pt") and Path(about["ckpt"]).name)
        changed = [one.stat().st_mtime for one in folder.iterdir() if one.suffix in (".pt", ".safetensors")]
        before = tracking.read_json(file)
        if before and file.stat().st_mtime > max(changed, default=0) and whose(before["arguments"]) == whose(vars(cfg)):
            report = before | report  # what other tasks said of the same weights and data stays
        file.with_suffix(".tmp").write_text(json.dumps(report | {"arguments": vars(cfg)}, indent=2) + "\n", encoding="utf-8")
        os.replace(file.with_suffix(".tmp"), file)
    tracking.send(folder)  # to the run of the training, where that was tracked


if __name__ == "__main__":
    main()
