"""The models that bench.py compares: how each is built, trained, and made to generate and to score.

A new peer is a class like Transformers below, and its line in CONTENDERS.
"""

import copy
import importlib.util
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import optim
from model import NeoX, NeoXConfig
from parts import configurator, hf, runs
from parts import device as devices
from parts.data import Batches, Dataset, Meta
from parts.files import load_json
from parts.generate import generate
from train import Trainer, build, training_step


def model_config(cfg, **changes) -> NeoXConfig:
    """The model that the settings describe, with changes. ValueError if it cannot exist."""
    return NeoXConfig(**runs.model_settings(cfg) | changes)


def vocabulary(dataset: str) -> int:
    """The data set's number of tokens, or 8,192 if it is not there. ValueError if its meta.json is
    damaged."""
    file = configurator.dataset_folder(dataset) / "meta.json"
    return load_json(file, Meta)["vocab_size"] if os.path.exists(file) else 8192


def clone_of_nanogpt(folder: str) -> Path:
    """The folder of a clone. ValueError if it is none."""
    path = configurator.locate(folder).resolve()
    if not (path / "model.py").is_file():
        raise ValueError(f"{folder} holds no model.py of nanoGPT; give the folder of a clone")
    return path


def environment(name: str) -> dict:
    """Of a contender's process: train.py asks torch for huge pages; the peers do not."""
    ours = name.startswith(("nanoNeoX", "matrix"))
    return os.environ | {"THP_MEM_ALLOC_ENABLE": str(int(ours))}


class RandomTokens(Dataset):
    """What training batches are read from: these token ids (uint16), or random ones."""

    def __init__(self, cfg, tokens=None):
        self.block_size, self.train = cfg.block_size, tokens
        if tokens is None:
            random = np.random.default_rng(0)
            self.train = random.integers(cfg.vocab_size, size=2_000_000, dtype=np.uint16)


def prompts(cfg, rows):
    return torch.randint(cfg.vocab_size, (rows, 32), generator=torch.Generator().manual_seed(0))


def text(cfg):
    """Windows as long as the context, (64, T), to compute the loss of."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(cfg.vocab_size, (64, cfg.block_size), generator=generator)


class Contender:
    """What bench.py runs and times. The methods train, generate and loss each prepare an action
    and return it as a function of no arguments; a contender need not have all of them.

    A peer has model(context), forward(model, x, y), which is the loss, and optimizers(model).
    `parts` sums the seconds that each part of its training steps took."""

    def __init__(self, cfg, device: str, dtype: torch.dtype):
        self.cfg, self.device, self.dtype, self.parts = cfg, device, dtype, {}

    def mark(self, part=None):
        """Called at the end of each part of a step; without a name, at the step's beginning."""
        devices.synchronize(self.device)
        now = time.perf_counter()
        if part:
            self.parts[part] = self.parts.get(part, 0) + now - self.marked
        self.marked = now

    def train(self):
        """A step exactly as train.py does it."""
        trainer = self.trainer()

        def step():
            self.mark()
            training_step(trainer, self.mark)

        return step

    def trainer(self) -> Trainer:
        cfg, device = self.cfg, self.device
        model = self.model(cfg.block_size).to(device).train()
        forward = partial(self.forward, torch.compile(model) if cfg.compile else model)
        scaler = torch.amp.GradScaler(device, enabled=self.dtype == torch.float16)
        autocast = devices.autocast(device, self.dtype)
        batches = Batches(RandomTokens(cfg), cfg, device, 0, 1, 0)
        optimizers = self.optimizers(model)
        return Trainer(forward, model, optimizers, scaler, autocast, batches, cfg.grad_clip)

    def optimizers(self, model):
        return optim.adamw(model, self.cfg)

    def writer(self):
        return self.model(32 + self.cfg.new_tokens).eval().to(self.device, self.dtype)


class NanoNeoX(Contender):
    def trainer(self):
        devices.prepare(self.device)
        model = NeoX(model_config(self.cfg))
        return build(self.cfg, model, RandomTokens(self.cfg), self.device, self.dtype, 0, 1, 0)

    def generate(self, rows):
        cfg, dtype = self.cfg, devices.generation_dtype(self.device, rows)  # as sample.py does
        model = NeoX(model_config(cfg, block_size=32 + cfg.new_tokens)).to(self.device, dtype)
        ids = prompts(cfg, rows).tolist()
        return partial(generate, model.eval(), ids, cfg.new_tokens, temperature=0)

    def loss(self):
        from tasks.scoring import score
        from tasks.task import Examinee

        model = NeoX(model_config(self.cfg)).eval().to(self.device)
        network = copy.deepcopy(model).to(self.dtype)  # as eval.py does, whose head is in float32
        ids = text(self.cfg).flatten().numpy()
        return partial(score, Examinee(network, model), [ids], [1], self.cfg.block_size, "loss")


class Transformers(Contender):
    def model(self, context):
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        raw = hf.config_to_hf(model_config(self.cfg, block_size=context))
        for key in ("architectures", "model_type", "torch_dtype"):
            del raw[key]
        return GPTNeoXForCausalLM(GPTNeoXConfig(**raw))

    def forward(self, model, x, y):
        # It shifts the labels itself, so it reads one position fewer; that is in its favour.
        return model(input_ids=x, labels=x).loss

    def generate(self, rows):
        new, ids = self.cfg.new_tokens, prompts(self.cfg, rows).to(self.device)
        how = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        return partial(self.writer().generate, ids, **how)

    def loss(self):
        model = self.model(self.cfg.block_size).eval().to(self.device, self.dtype)

        @torch.inference_mode()
        def read():
            for x in text(self.cfg).to(self.device).split(8):  # on 2 cores faster than 4 or 32
                logits = model(x).logits.float()
                F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten(), reduction="none")
                logits.topk(5)

        return read


def load_nanogpt(folder):
    """The module model.py of a clone of nanoGPT, under a name that does not hide ours."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    sys.modules["nanogpt_model"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NanoGPT(Contender):
    def model(self, context):
        nanogpt = load_nanogpt(self.cfg.nanogpt)
        names = ("vocab_size", "n_layer", "n_head", "n_embd", "dropout")
        shape = {name: getattr(self.cfg, name) for name in names}
        # Without biases, as its train.py sets it.
        return nanogpt.GPT(nanogpt.GPTConfig(**shape, block_size=context, bias=False))

    def forward(self, model, x, y):
        return model(x, y.contiguous())[1]

    def optimizers(self, model):
        cfg = self.cfg
        betas = cfg.beta1, cfg.beta2
        return [model.configure_optimizers(cfg.weight_decay, cfg.lr, betas, self.device)]

    def generate(self, rows):
        ids = prompts(self.cfg, rows).to(self.device)
        return partial(self.writer().generate, ids, self.cfg.new_tokens)


class LitGPT(Contender):
    def model(self, context):
        from litgpt.model import GPT, Config

        c = self.cfg
        shape = dict(vocab_size=c.vocab_size, padded_vocab_size=c.vocab_size, n_layer=c.n_layer)
        shape |= dict(n_head=c.n_head, n_embd=c.n_embd, intermediate_size=4 * c.n_embd)
        return GPT(Config.from_name("pythia-14m", block_size=context, **shape))

    def forward(self, model, x, y):
        from litgpt.utils import chunked_cross_entropy

        return chunked_cross_entropy(model(x), y, chunk_size=0)  # as its pretrain.py calls it

    def generate(self, rows):
        from litgpt.generate.base import generate

        if rows > 1:
            raise ValueError("it generates one sequence at a time")
        model, ids = self.writer(), prompts(self.cfg, 1)[0].to(self.device)
        with torch.device(self.device):
            model.set_kv_cache(batch_size=1, dtype=self.dtype)
        return partial(generate, model, ids, 32 + self.cfg.new_tokens, temperature=0.0)


def matrix_size(device):
    return 8192 if device == "cuda" else 2048


class MatrixProduct(Contender):
    """The machine's limit: square products, the right-hand one transposed, as in every Linear."""

    def train(self):
        n = matrix_size(self.device)
        a, b = torch.randn(2, n, n, device=self.device).to(self.dtype)
        return partial(torch.mm, a, b.t())


CONTENDERS = {
    "nanoNeoX": NanoNeoX,
    "transformers": Transformers,
    "nanoGPT": NanoGPT,
    "litgpt": LitGPT,
    "matrix product": MatrixProduct,
}


# --- a contender's process ------------------------------------------------------------------------


def serve(contender: Contender, action: str, answers):
    """Answer each line of standard input, a count, with a line of JSON: how long that many actions
    took, their parts, and the peak memory. Before the first one, say that all is prepared."""
    method, *rows = action.split()
    act = getattr(contender, method)(*map(int, rows))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        contender.parts.clear()
        start = time.perf_counter()
        for _ in range(int(line)):
            act()
        devices.synchronize(contender.device)
        answer = {"seconds": time.perf_counter() - start, "parts": contender.parts}
        answer["memory"] = peak_memory(contender.device)
        wait_until_idle()
        print(json.dumps(answer), file=answers, flush=True)


def wait_until_idle():
    """Wait until the threads of this process use no CPU: OpenMP's spin for a while after their last
    work (GNU's 10 ms, Intel's 0.2 s), which would slow down the contender whose turn is next."""
    quiet = 0
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.02)
        quiet = quiet + 1 if time.process_time() - before < 0.001 else 0
        if quiet == 3:  # on a busy machine a spinning thread may not run in one of them
            return
    sys.exit("its idle threads do not stop spinning; unset OMP_WAIT_POLICY and KMP_BLOCKTIME")


def peak_memory(device):
    """Most bytes held so far: by torch on a GPU, or as the process's resident set."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    configurator.die("bench.py runs this: python bench.py --peers")
