"""How fast serve.py answers one client, eight clients, and an editor's next request.

    python tools/clients.py --ckpt=out/python_cpu
    python tools/clients.py --transformers                     # beside transformers' generate
    python tools/clients.py --llama=http://127.0.0.1:8080      # beside a llama-server

All are measured in turn, several times over, on the same prompts; medians are printed. Greedy text
repeats itself, which makes it easy to guess; drawn text does not.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import child, run_script

import json
import statistics
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from parts import configurator
from parts import tokenizer as tokenization


class Settings:
    ckpt = ""  # a run's folder; empty: newest run
    rounds = 5  # how often each is measured
    clients = 8  # that ask together
    max_tokens = 256  # new tokens of each
    threads = 0  # of serve.py; 0: one for each core
    prefix = 1000  # tokens of an editor's text, to which it then adds 20
    transformers = False  # measure transformers' generate too, in float32 and bfloat16
    llama = ""  # measure a llama-server with the same model too, at this URL
    path = ""  # a folder of *.py files that prompts begin with; empty: Python's own


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, ("rounds", "clients", "max_tokens", "prefix"))
    ckpt = configurator.locate(cfg.ckpt or configurator.newest_run())
    folder = Path(cfg.path or sysconfig.get_paths()["stdlib"])
    with configurator.mistakes():
        tokenizer = tokenization.load(ckpt)
        files = [file for file in sorted(folder.glob("*.py")) if file.stat().st_size > 20_000]
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        if len(texts) < cfg.clients:
            raise ValueError(f"{folder} has {len(texts)} *.py files of 20 KB; {cfg.clients} needed")
    script = configurator.ROOT / "serve.py"
    command = [sys.executable, str(script), f"--ckpt={ckpt}", "--port=0"]
    command += [f"--threads={cfg.threads}", f"--rows={max(cfg.clients, 8)}"]
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        line = server.stdout.readline().strip()
        print(line)
        measure(cfg, line.rpartition(" ")[2], ckpt, tokenizer, texts)


def measure(cfg, url: str, ckpt: Path, tokenizer, texts: list[str]):
    prompts = [text[: 300 + 10 * number] for number, text in enumerate(texts)]
    whole = ours(cfg, url, prompts, 1, 0)
    # A model may end its text at once.
    prompts = [prompt for n, prompt in enumerate(prompts) if whole(n) > cfg.max_tokens // 2]
    if len(prompts) < 2:
        configurator.die("the model ends nearly every text at once; lower --max_tokens")
    ways = {}
    for temperature in (0, 0.8):
        for clients in (1, cfg.clients):
            name = f"{clients} client{'s' * (clients > 1)}, temperature {temperature}"
            ways[name] = ours(cfg, url, prompts, clients, temperature)
    if cfg.llama:
        ways["llama-server, 1 client, temperature 0"] = llama(cfg, prompts)
    if cfg.transformers:
        ways |= transformers(cfg, ckpt, prompts)
    rates, firsts = {name: [] for name in ways}, {"cold": [], "seen before": []}
    ids = [tokenizer.encode(text) for text in texts]
    for number in range(-1, cfg.rounds):  # the first round warms all up
        for name, run in ways.items():
            began = time.perf_counter()
            rate = run(number) / (time.perf_counter() - began)
            rates[name] += [rate] * (number >= 0)
        for name, tokens in ("cold", cfg.prefix), ("seen before", cfg.prefix + 20):
            prompt = tokenizer.decode(ids[number % len(ids)][:tokens])
            seconds = first_token(url, prompt)
            firsts[name] += [1000 * seconds] * (number >= 0)
    for name, values in rates.items():
        print(f"{name:40} {spread(values)} tokens/s")
    for name, values in firsts.items():
        print(f"{f'first token, prefix {name}':40} {spread(values)} ms")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):8,.1f} ({min(values):,.1f} to {max(values):,.1f})"


# --- who is measured: functions of the round's number that return how many tokens were written ----


def ours(cfg, url: str, prompts: list[str], clients: int, temperature: float):
    def run(number: int) -> int:
        bodies = [
            dict(prompt=prompts[(number + n) % len(prompts)], seed=n, temperature=temperature)
            | dict(max_tokens=cfg.max_tokens)
            for n in range(clients)
        ]
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda body: post(f"{url}/v1/completions", body), bodies))
        return sum(answer["usage"]["completion_tokens"] for answer in answers)

    return run


def llama(cfg, prompts: list[str]):
    def run(number: int) -> int:
        body = dict(prompt=prompts[number % len(prompts)], n_predict=cfg.max_tokens, temperature=0)
        return post(f"{cfg.llama}/completion", body)["tokens_predicted"]

    return run


def transformers(cfg, ckpt: Path, prompts: list[str]) -> dict:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from parts.modeling_nanoneox import NanoNeoXConfig, NanoNeoXForCausalLM

    # Of a model with n_mix our own class, so that nothing in the run's folder is executed.
    AutoConfig.register("nanoneox", NanoNeoXConfig)
    AutoModelForCausalLM.register(NanoNeoXConfig, NanoNeoXForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(ckpt)
    how = dict(do_sample=False, max_new_tokens=cfg.max_tokens, pad_token_id=0)

    def of(dtype):
        model = AutoModelForCausalLM.from_pretrained(ckpt, dtype=dtype).eval()

        def run(number: int) -> int:
            ids = tokenizer(prompts[number % len(prompts)], return_tensors="pt").input_ids
            room = model.config.max_position_embeddings - cfg.max_tokens
            ids = ids[:, -max(room, 8) :]
            mask = torch.ones_like(ids)
            return model.generate(ids, attention_mask=mask, **how).size(1) - ids.size(1)

        return run

    dtypes = torch.float32, torch.bfloat16
    return {f"transformers, {str(dtype)[6:]}": of(dtype) for dtype in dtypes}


def post(url: str, body: dict):
    try:
        with urllib.request.urlopen(request(url, body), timeout=600) as answer:
            return json.load(answer)
    except urllib.error.URLError as error:  # not there, or its context is too short
        configurator.die(f"{url}: {error}")


def first_token(url: str, prompt: str) -> float:
    """Seconds until the first event of a stream."""
    body = dict(prompt=prompt, max_tokens=1, temperature=0, stream=True)
    began = time.perf_counter()
    with urllib.request.urlopen(request(f"{url}/v1/completions", body), timeout=60) as answer:
        answer.readline()
        return time.perf_counter() - began


def request(url: str, body: dict) -> urllib.request.Request:
    kind = {"Content-Type": "application/json"}
    return urllib.request.Request(url, json.dumps(body).encode(), kind)


if __name__ == "__main__":
    run_script(main)
