"""serve.py, asked by OpenAI's client, plain HTTP and hostile bytes: it writes sample.py's text."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import torch
from conftest import ROOT, run

from parts import runs
from parts.generate import Decoder, Piece, completion, decoder_agrees, generate, read_prompt


class Served:
    """A server, as a person starts it, and what it printed."""

    def __init__(self, *args):
        command = [sys.executable, str(ROOT / "serve.py"), "--port=0", *map(str, args)]
        how = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT.parent)
        self.process, self.lines = subprocess.Popen(command, **how), []
        while "serving" not in (line := self.process.stdout.readline()):
            assert line, "".join(self.lines)
            self.lines.append(line)
        self.url = re.search(r"http://\S+", line)[0]
        self.port = int(self.url.rsplit(":", 1)[1])
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self.reader.start()
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    def post(self, path, **body):
        return httpx.post(self.url + path, json=body, timeout=60)

    def metric(self, name):
        text = httpx.get(f"{self.url}/metrics").text
        return float(re.search(rf"^nanoneox_{re.escape(name)} (\S+)$", text, re.M)[1])

    def raw(self, data: bytes, wait=20.0) -> bytes:
        """What comes back for bytes that no client would send."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            connection.sendall(data)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
                head, _, body = answer.partition(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.I)
                if length and len(body) >= int(length[1]):
                    break
        return answer

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.reader.join()


@pytest.fixture(scope="module")
def server(trained):
    server = Served(f"--ckpt={trained}", "--arrival_seconds=2", "--rows=4", "--max_tokens=300")
    yield server
    server.stop()


PROMPTS = [
    "def f(",
    "import os\n\nclass Stack:\n    def push(self, it",
    "",
    "# the ä\n",
    "for i in range(10):\n    ",
    "x = [" + "1, " * 300,  # longer than the context
]


def sampled(trained, prompt, *args, most=48):
    done = run(
        "sample.py", f"--ckpt={trained}", f"--prompt={prompt}", f"--max_new_tokens={most}", *args
    )
    return done.stdout.removesuffix("\n")


def greedy(trained, prompt, most):
    """What sample.py --temperature=0 writes, without its start."""
    model, tokenizer, _ = runs.load(str(trained), "cpu")
    read, special = read_prompt(tokenizer, prompt), list(tokenizer.special.values())
    how = dict(temperature=0, stop_ids=special, first_ids=[read.first_ids])
    [ids] = generate(model, [read.ids], most, **how, vocab_size=tokenizer.vocab_size)
    return completion(tokenizer, ids, read.healed)


# --- the same text everywhere ---------------------------------------------------------------------


def test_text_is_that_of_sample_py_alone_and_together(server, trained):
    expected = [greedy(trained, prompt, 48) for prompt in PROMPTS]
    assert PROMPTS[0] + expected[0] == sampled(trained, PROMPTS[0], "--temperature=0")

    def ask(prompt):
        return server.client.completions.create(
            model="any", prompt=prompt, max_tokens=48, temperature=0
        )

    assert [ask(prompt).choices[0].text for prompt in PROMPTS] == expected
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = [answer.choices[0].text for answer in pool.map(ask, PROMPTS * 2)]
    assert together == expected * 2
    for prompt, text in zip(PROMPTS, expected):
        answer = server.post("/completion", prompt=prompt, n_predict=48, temperature=0).json()
        assert answer["content"] == text and answer["stop"]


def test_drawn_text_is_that_of_sample_py_with_the_seed(server, trained):
    expected = sampled(trained, "class A", "--seed=5", "--repetition_penalty=1.2")
    answer = server.client.completions.create(
        model="any",
        prompt="class A",
        max_tokens=48,
        temperature=0.8,
        top_p=0.95,
        seed=5,
        extra_body={"top_k": 50, "repetition_penalty": 1.2},
    )
    assert "class A" + answer.choices[0].text == expected


def test_gap_is_filled_as_by_sample_py(server, trained):
    prefix, suffix = "def double(x):\n", "\n    return result\n"
    expected = sampled(trained, prefix, f"--suffix={suffix}", "--temperature=0")
    middle = expected.removeprefix(prefix).removesuffix(suffix)
    how = dict(model="any", max_tokens=48, temperature=0)
    answer = server.client.completions.create(prompt=prefix, suffix=suffix, **how)
    assert answer.choices[0].text == middle
    for marked in (
        f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>",
        f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>",
        f"<|fim_prefix|><|fim_suffix|>{suffix}<|fim_middle|>{prefix}",
    ):
        assert server.client.completions.create(prompt=marked, **how).choices[0].text == middle
    asked = dict(input_prefix=prefix, input_suffix=suffix, n_predict=48, temperature=0)
    answer = server.post("/infill", **asked, stream=False, input_extra=[{"text": "x = 1"}])
    assert answer.json()["content"] == middle
    assert '"content":"' in answer.text  # llama.vim looks for these very characters
    half = server.post("/infill", **asked | dict(input_prefix="def dou", prompt="ble(x):\n"))
    assert half.json()["content"] == middle


def test_fallback_follows_a_changed_model(trained, monkeypatch):
    """Where model.py was edited, the engine reads by its forward, and finds the same."""
    from parts import engine

    model, tokenizer, _ = runs.load(str(trained), "cpu")
    monkeypatch.setattr(engine, "decoder_agrees", lambda model: False)
    plain = engine.Engine(model, tokenizer, rows=3)
    assert plain.decoder is None
    plain.start()
    prompts = [[0, 5, 9, 300], [0], list(range(140))]
    got, done = {}, threading.Event()

    def deliver(parts):
        got.update({part.row: [token.id for token in part.tokens] for part in parts})
        if len(got) == len(prompts):
            done.set()

    asks = [engine.Ask(ids, max_new_tokens=30, temperature=0) for ids in prompts]
    plain.submit(asks, deliver)
    assert done.wait(60)
    plain.close()
    special = set(tokenizer.special.values())
    for row, ids in enumerate(prompts):
        [expected] = generate(model, [ids], 30, temperature=0, stop_ids=special)
        assert got[row] == [token for token in expected if token not in special]


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(parallel_residual=False, rotary_pct=0.0, learned_positions=True),
        dict(shared_norm=True, head_bias=True, activation="gelu_new", rotary_pct=0.5),
        dict(activation="swiglu", tie_embeddings=True, rotary_pct=1.0),
        dict(shared_norm=True, n_mix=2, tie_embeddings=True, rotary_pct=1.0),
    ],
)
def test_rows_of_the_cache_read_what_the_model_reads(settings):
    """Pieces of different rows and lengths, by torch's operators and by the compiled kernel,
    against model.py in float64."""
    from model import NeoX, NeoXConfig

    torch.manual_seed(1)
    config = NeoXConfig(vocab_size=97, block_size=64, n_layer=3, n_head=4, n_embd=64, **settings)
    model = NeoX(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    assert decoder_agrees(model)
    ids = torch.randint(97, (4, 64))
    with torch.no_grad():
        expected = model.double()(ids).float()
        model.float()
        for threads in (0, 1, 3):
            decoder = Decoder(model, 4, threads)
            assert bool(decoder.few) == bool(threads)
            read = [0, 0, 0, 0]
            for sizes in ([5, 0, 40, 1], [1, 3, 1, 1], [2, 61, 1, 30], [56, 0, 22, 32]):
                pieces = [
                    Piece(row, read[row], ids[row, read[row] : read[row] + size].tolist())
                    for row, size in enumerate(sizes)
                    if size
                ]
                found = decoder.logits(decoder.read(pieces))
                wanted = [expected[row, start : start + len(some)] for row, start, some in pieces]
                assert torch.allclose(found, torch.cat(wanted), atol=1e-4)
                read = [a + b for a, b in zip(read, sizes)]
            assert read == [64] * 4
            decoder.copy(2, 0, 20)  # a prefix that another row has read
            found = decoder.logits(decoder.read([Piece(0, 20, ids[2, 20:25].tolist())]))
            assert torch.allclose(found, expected[2, 20:25], atol=1e-4)


def test_kernel_steps_aside_for_another_activation(monkeypatch, capsys):
    """One that differs for large arguments alone, which few tokens have."""
    import model as plain_model
    from parts import generate as generation

    def edited(x):
        return torch.where(x > 9, 9, plain_model.F.gelu(x, approximate="tanh"))

    config = plain_model.NeoXConfig(vocab_size=97, block_size=32, n_layer=1, n_head=2, n_embd=32)
    config.activation = "gelu_new"
    model = plain_model.NeoX(config).eval()
    assert Decoder(model, 2, 1).few
    monkeypatch.setitem(plain_model.ACTIVATIONS, "gelu_new", edited)
    monkeypatch.setattr(generation, "gelu_fast", edited)
    assert Decoder(model, 2, 1).few is None
    assert "parts/kernel.py differs" in capsys.readouterr().err


# --- OpenAI's client ------------------------------------------------------------------------------


def test_streams_choices_logprobs_and_usage(server):
    how = dict(model="any", prompt=["def f(", "class B"], max_tokens=12, n=2, seed=3, logprobs=3)
    whole = server.client.completions.create(**how)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in whole.choices}) > 2
    for prompt, choices in zip(how["prompt"], (whole.choices[:2], whole.choices[2:])):
        alone = server.client.completions.create(**how | {"prompt": prompt}).choices
        assert [choice.text for choice in alone] == [choice.text for choice in choices]
    texts, told, ends = [""] * 4, [0] * 4, [None] * 4
    options = {"include_usage": True}
    for chunk in server.client.completions.create(**how, stream=True, stream_options=options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            told[choice.index] += len(choice.logprobs.tokens)
            ends[choice.index] = choice.finish_reason or ends[choice.index]
        usage = chunk.usage or None
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    for choice, count in zip(whole.choices, told):
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == count and "".join(logprobs.tokens) == choice.text
        for n, token in enumerate(logprobs.tokens):
            assert choice.text[logprobs.text_offset[n] :].startswith(token)
            assert logprobs.top_logprobs[n][token] == logprobs.token_logprobs[n] <= 0


def test_echo_scores_a_text(server, trained):
    """Against log-softmax of model.py's logits."""
    text = "import os\n\n\ndef f(x):\n    return x"
    model, tokenizer, _ = runs.load(str(trained), "cpu")
    ids = torch.tensor([[tokenizer.eot, *tokenizer.encode(text)]])
    with torch.no_grad():
        logprobs = model(ids)[0, :, : tokenizer.vocab_size].log_softmax(-1)
    expected = logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0]
    how = dict(model="any", max_tokens=0, echo=True, logprobs=1, temperature=0)
    choice = server.client.completions.create(prompt=ids[0].tolist(), **how).choices[0]
    assert choice.logprobs.token_logprobs[0] is None
    assert np.allclose(choice.logprobs.token_logprobs[1:], expected, atol=1e-4)
    assert choice.text == tokenizer.decode(ids[0].tolist())
    one = server.client.completions.create(prompt=text, **how | dict(max_tokens=1)).choices[0]
    assert "".join(one.logprobs.tokens) == one.text and one.text.startswith(text)
    assert np.allclose(one.logprobs.token_logprobs[:-1], expected, atol=1e-4)
    # Whatever comes next is told, so that a list has one entry for each token of a prompt, and one.
    for end in range(2, ids.shape[1], 3):
        prompt = ids[0, :end].tolist()
        told = server.client.completions.create(prompt=prompt, **how | dict(max_tokens=1))
        assert len(told.choices[0].logprobs.tokens) == end + 1
        assert told.usage.completion_tokens == 1
    with pytest.raises(openai.BadRequestError, match="context"):
        server.client.completions.create(prompt=text * 20, **how)


def test_stop_penalties_best_of_and_limits(server):
    create = server.client.completions.create
    how = dict(model="any", prompt="def f(self):", max_tokens=60, temperature=0)
    free = create(**how).choices[0]
    word = re.search(r"\w\w+", free.text[5:])[0]
    stopped = create(**how, stop=[word, "never"]).choices[0]
    assert stopped.text == free.text.partition(word)[0] and stopped.finish_reason == "stop"
    pieces = [c.choices[0].text for c in create(**how, stop=word, stream=True)]
    assert "".join(pieces) == stopped.text
    penalties = dict(frequency_penalty=2, presence_penalty=2)
    plain, varied = (create(**how, **more, logprobs=0).choices[0] for more in ({}, penalties))
    assert len(set(varied.logprobs.tokens)) > 2 * len(set(plain.logprobs.tokens))
    [model] = server.client.models.list()
    assert server.client.models.retrieve(model.id) == model and model.meta["n_ctx_train"] == 128
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("other")
    drawn = how | dict(temperature=1, seed=1, logprobs=0)
    four = create(**drawn, n=4).choices
    best = create(**drawn, best_of=4).choices[0]
    score = {choice.text: np.mean(choice.logprobs.token_logprobs) for choice in four}
    assert best.text == max(score, key=score.get)
    for wrong in (dict(max_tokens=301), dict(best_of=2, stream=True), dict(logit_bias={"5": 1})):
        with pytest.raises(openai.BadRequestError) as error:
            create(**how | wrong)
        assert error.value.param in wrong


def test_chat(server, trained):
    messages = [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": [{"type": "text", "text": "What is a list?"}]},
    ]
    how = dict(model="any", messages=messages, max_tokens=20, temperature=0)
    whole = server.client.chat.completions.create(**how, logprobs=True, top_logprobs=2)
    content = whole.choices[0].logprobs.content
    assert "".join(token.token for token in content) == whole.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 for token in content)
    chunks = list(server.client.chat.completions.create(**how, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    done = run(
        "sample.py",
        f"--ckpt={trained}",
        "--chat",
        "--max_new_tokens=20",
        "--temperature=0",
        stdin="What is a list?\n",
    )
    asked = [{"role": "user", "content": "What is a list?"}]
    answer = server.client.chat.completions.create(**how | {"messages": asked})
    assert done.stdout.strip() == answer.choices[0].message.content.strip()


def test_llama_fields_and_indentation(server):
    wanted = ["content", "timings/prompt_n", "truncated", "nothing"]
    answer = server.post("/infill", input_prefix="x", n_predict=0, response_fields=wanted).json()
    assert set(answer) == {"content", "timings/prompt_n", "truncated"} and answer["content"] == ""
    how = dict(prompt="class A:\n    def f(self):\n        return", n_predict=80, temperature=0)
    text = server.post("/completion", **how).json()["content"]
    cut = server.post("/completion", **how, n_indent=8).json()["content"]
    dedent = re.search(r"\n[ \t]{0,7}[^\s]", text)
    assert cut == (text[: dedent.start()] if dedent else text)
    events = server.post("/completion", **how, n_indent=8, stream=True).text.split("\n\n")
    parts = [json.loads(event.removeprefix("data: ")) for event in events if event]
    assert "".join(part["content"] for part in parts) == cut and parts[-1]["stop"]


# --- the cache and its rows -----------------------------------------------------------------------


def test_prefix_is_read_once(server, trained):
    """An editor sends the same text again, and a little more; choices share their prompt."""
    prefix = "".join(f"def function_{n}(x):\n    return x + {n}\n" for n in range(5))
    first = server.post("/completion", prompt=prefix, n_predict=4, temperature=0).json()
    longer = prefix + "\n@decorator\ndef"
    again = server.post("/completion", prompt=longer, n_predict=40, temperature=0).json()
    assert again["content"] == greedy(trained, longer, 40)
    assert again["timings"]["cache_n"] >= first["timings"]["prompt_n"] - 2
    assert again["timings"]["prompt_n"] < 10
    same = server.post("/completion", prompt=prefix, n_predict=40, temperature=0).json()
    assert same["timings"]["prompt_n"] == 1 and same["content"] == greedy(trained, prefix, 40)
    more = prefix + "\nclass Other:\n    def"
    answer = server.client.completions.create(
        model="any", prompt=more, max_tokens=40, temperature=0, n=4
    )
    assert {choice.text for choice in answer.choices} == {greedy(trained, more, 40)}
    assert answer.usage.prompt_tokens_details.cached_tokens > 2 * answer.usage.prompt_tokens


def test_what_the_cache_held_gives_the_same_probabilities(server):
    """echo with logprobs reads its whole prompt."""
    ids = [0, *range(300, 360)]
    how = dict(model="any", max_tokens=8, temperature=0, logprobs=0)
    server.client.completions.create(prompt=ids[:40] + [7, 8, 9], **how)
    reused = server.client.completions.create(prompt=ids, **how)
    assert reused.usage.prompt_tokens_details.cached_tokens == 40
    whole = server.client.completions.create(prompt=ids, echo=True, **how).choices[0].logprobs
    found = reused.choices[0].logprobs.token_logprobs
    assert np.allclose(found, whole.token_logprobs[-len(found) :], atol=1e-4)


def test_a_client_that_goes_away_frees_its_place(server):
    body = dict(prompt="x = ", max_tokens=300, n=4, temperature=1.0, seed=1)
    for stream_it in (True, False):
        before = server.metric('tokens_total{kind="written"}')
        with (
            httpx.stream(
                "POST", f"{server.url}/v1/completions", json=body | {"stream": stream_it, "n": 16}
            )
            if stream_it
            else _asked(server, body | {"n": 16})
        ):
            deadline = time.monotonic() + 10
            while server.metric("running") < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
        deadline = time.monotonic() + 10
        while server.metric("running") + server.metric("queue") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.metric("running") + server.metric("queue") == 0
        assert server.metric('tokens_total{kind="written"}') - before < 16 * 300


def _asked(server, body):
    """A connection that has asked, and is closed at the end of its block without an answer."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
    )
    return connection


# --- what is refused ------------------------------------------------------------------------------

GOOD = {"prompt": "x", "max_tokens": 2}
BODIES = [  # JSON, or bytes, and what is wrong with it
    {"prompt": 5},
    {"prompt": {"a": 1}},
    {"prompt": ["a", 5]},
    {"prompt": [-1]},
    {"prompt": [2**31]},
    {"prompt": [99999]},
    {"prompt": []},
    {"prompt": [[]]},
    {"prompt": ["x"] * 65},
    {"prompt": [True, False]},
    GOOD | {"max_tokens": -1},
    GOOD | {"max_tokens": 10**9},
    GOOD | {"max_tokens": "5"},
    GOOD | {"max_tokens": 1.5},
    GOOD | {"max_tokens": 10**400},
    GOOD | {"temperature": -1},
    GOOD | {"temperature": "hot"},
    GOOD | {"temperature": [0.5]},
    GOOD | {"top_p": -0.1},
    GOOD | {"top_p": 1.1},
    GOOD | {"top_k": -5},
    GOOD | {"n": 0},
    GOOD | {"n": 17},
    GOOD | {"n": 2.5},
    GOOD | {"stop": 5},
    GOOD | {"stop": [""]},
    GOOD | {"stop": ["a"] * 65},
    GOOD | {"stop": "a" * 1001},
    GOOD | {"seed": 2**64},
    GOOD | {"seed": "x"},
    GOOD | {"logprobs": 21},
    GOOD | {"logprobs": True},
    GOOD | {"presence_penalty": 3},
    GOOD | {"frequency_penalty": -3},
    GOOD | {"repetition_penalty": 0},
    GOOD | {"stream": "yes"},
    GOOD | {"suffix": 5},
    GOOD | {"echo": "x"},
    GOOD | {"best_of": 0},
    GOOD | {"tools": [{"type": "function"}]},
    GOOD | {"prompt": [1, 2], "suffix": "x"},
    GOOD | {"suffix": "x", "echo": True, "logprobs": 1},
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "temperature": Infinity}',
    b'{"prompt": "x", "temperature": 1e999}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": ' + b"[" * 100_000,
    b'{"a":' * 50_000,
    b"[]",
    b"null",
    b"5",
    b"",
    b"{",
    b"\xff\xfe{}",
    b'{"prompt": "x"} trailing',
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body)[:40])
def test_wrong_bodies_get_one_line(server, body):
    data = body if isinstance(body, bytes) else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/completions", content=data, headers=headers, timeout=20)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and "\n" not in error["message"]
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_limits_and_places(server):
    def status(method, path, **how):
        return httpx.request(method, server.url + path, timeout=20, **how).status_code

    completions, big = "/v1/completions", b'{"prompt": "' + b"x" * 3_000_000 + b'"}'
    typed = {"Content-Type": "application/json"}
    assert status("POST", completions, content=big, headers=typed) == 413
    assert status("POST", completions, content=iter([big]), headers=typed) == 413  # no length
    assert status("POST", completions, content="x=1", headers={"Content-Type": "text/xml"}) == 415
    zipped = typed | {"Content-Encoding": "gzip"}
    assert status("POST", completions, content="{}", headers=zipped) == 415
    assert status("POST", completions, json={"prompt": ["x"] * 64, "n": 16}) == 400  # never
    many = {"prompt": ["x"] * 4, "n": 16, "max_tokens": 200}
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: status("POST", completions, json=many), range(3)))
    assert 200 in answers and 429 in answers  # later
    assert status("GET", completions) == 405 and status("DELETE", "/health") == 405
    for path in ("/etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1//models", "/serve.py", "/\u00e4"):
        assert status("GET", path) == 404
    for name, value in [
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Host", "evil.example"),
        ("Host", "["),
        ("Host", f"127.0.0.1.evil.example:{server.port}"),
    ]:
        assert status("POST", completions, json=GOOD, headers={name: value}) == 403
    own = {"Origin": server.url}
    assert status("POST", completions, json=GOOD, headers=own) == 200
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert status("OPTIONS", completions, headers=preflight) == 403
    assert status("GET", "/health", headers={"X": "y" * 40_000}) == 431
    assert server.post("/v1/chat/completions", messages=[]).status_code == 400
    assert server.post("/infill", input_prefix=5).status_code == 400
    assert server.post("/completion", prompt="x", n_predict=-2).status_code == 400


RAW = {
    b"nonsense\r\n\r\n": b"400",
    b"GET / HTTP/1.1\r\n\r\n": b"400",  # no Host
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n": b"400",
    b"POST /infill HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n": b"400",
    b"POST /infill HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    b"Content-Length: 6\r\n\r\n": b"400",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n": b"431",
    b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n": b"400",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n X: folded\r\n": b"408",  # the head never ends
    b"": b"408",  # nothing comes at all
    b"POST /infill HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 50\r\n\r\n{"inp': b"408",  # nor does this body
}


def test_a_body_that_does_not_end_holds_no_connection(server):
    """Though its answer, a refusal, has been sent."""
    head = b"GET / HTTP/1.1\r\nHost: evil\r\nContent-Length: 10\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head)
        assert b" 403 " in connection.recv(65536)
        connection.sendall(b"x")
        while connection.recv(65536):  # a timeout if the server does not close it
            pass


def test_bytes_that_no_client_sends(server):
    with ThreadPoolExecutor(len(RAW)) as pool:
        answers = list(pool.map(server.raw, RAW))
    for (data, expected), answer in zip(RAW.items(), answers):
        status = answer.split(b" ")[1]
        assert status.startswith(expected), (data[:60], answer[:200])
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_key_host_origin_and_a_quiet_end(trained):
    refused = run("serve.py", f"--ckpt={trained}", "--host=0.0.0.0", ok=False)
    assert refused.returncode == 2 and "--api_key" in refused.stderr
    server = Served(
        f"--ckpt={trained}", "--api_key=secret", "--allow_origin=https://my.site", "--rows=2"
    )
    try:
        assert server.post("/v1/completions", **GOOD).status_code == 401
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200
        key = {"Authorization": "Bearer secret", "Origin": "https://my.site"}
        answer = httpx.post(f"{server.url}/v1/completions", json=GOOD, headers=key)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://my.site"
        wanted = {"Access-Control-Request-Method": "POST"}
        wanted |= {"Access-Control-Request-Headers": "authorization,content-type"}
        before = key | wanted
        del before["Authorization"]
        assert httpx.options(f"{server.url}/v1/completions", headers=before).status_code == 200
        taken = run("serve.py", f"--ckpt={trained}", f"--port={server.port}", ok=False)
        assert taken.returncode == 2 and len(taken.stderr.strip().splitlines()) == 1
        # Ctrl-C: what is being written ends, then the server.
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0)
        chunks = client.completions.create(
            model="any", prompt="x", max_tokens=1000, seed=1, stream=True
        )
        next(iter(chunks))
        server.process.send_signal(signal.SIGINT)
        last = list(chunks)[-1]
        assert last.choices[0].finish_reason
    finally:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 130
        server.reader.join()
    log = "".join(server.lines)
    assert "Traceback" not in log and "secret" not in log
    assert log.count("POST /v1/completions 401") == 1
