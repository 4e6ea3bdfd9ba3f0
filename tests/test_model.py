"""model.py against transformers' GPTNeoX, GPT2 and Phi, torch's own FLOP counter, and itself by
other ways."""

import itertools
import math
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import model as model_file
import train
from model import NeoX, NeoXConfig
from parts import configurator, fast, hf, memory, runs
from parts.generate import Decoder, choose, generate, stream

SMALL = dict(vocab_size=97, block_size=32, n_layer=3, n_head=4, n_embd=64)


def random_model(seed=0, noise=0.1, **settings):
    """A model whose biases and norms are random too, so that a mixed-up one shows."""
    torch.manual_seed(seed)
    model = NeoX(NeoXConfig(**SMALL | settings))
    for parameter in model.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    return model


SHAPES = [
    dict(parallel_residual=parallel, rotary_pct=rotary, tie_embeddings=tied)
    for parallel, rotary, tied in itertools.product([True, False], [0.25, 0.5, 1.0], [True, False])
] + [
    dict(n_layer=1, n_head=1, n_embd=16, rotary_pct=1.0),
    dict(n_layer=6, n_head=8, n_embd=128, rotary_base=500.0, block_size=64),
    dict(vocab_size=1000, n_head=2, n_inner=100, norm_eps=1e-3, activation="gelu_fast"),
]
GPT2 = dict(learned_positions=True, rotary_pct=0.0, parallel_residual=False)
GPT2 |= dict(tie_embeddings=True, activation="gelu_new")
PHI = dict(shared_norm=True, head_bias=True, rotary_pct=0.5, activation="gelu_new")
VARIANTS = [
    dict(),
    dict(n_layer=1, n_head=1, n_embd=16),
    dict(n_layer=6, n_head=8, n_embd=128, block_size=64),
    dict(vocab_size=1000, n_head=2, n_inner=100, norm_eps=1e-3),
    dict(activation="gelu"),
    dict(n_head=16, activation="gelu_pytorch_tanh"),
    dict(n_layer=2, n_head=2, block_size=7),
]
SHAPES += [GPT2 | variant for variant in (*VARIANTS, dict(tie_embeddings=False))]
SHAPES += [PHI | variant for variant in (*VARIANTS, dict(rotary_pct=0.25, rotary_base=500.0))]
SHAPES += [PHI | dict(tie_embeddings=True, rotary_pct=1.0)]
MIX = dict(shared_norm=True, n_mix=2, rotary_pct=1.0, tie_embeddings=True)
SHAPES += [MIX, dict(shared_norm=True, n_mix=40, head_bias=True, n_layer=1, n_inner=100)]


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"]
)
@pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda shape: ",".join(f"{v}" for v in shape.values())
)
def test_same_logits_and_gradients_as_transformers_in_both_directions(
    shape, dtype, tolerance, tmp_path
):
    ours = random_model(noise=0.02, **shape)
    hf.save_pretrained(ours, tmp_path / "ours")
    trust = {"trust_remote_code": "n_mix" in shape}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", **trust)
    theirs.save_pretrained(tmp_path / "theirs")
    back = hf.from_pretrained(tmp_path / "theirs")
    assert back.config == ours.config
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), back.state_dict().values(), strict=True)
    )

    ours, theirs = ours.to(dtype), theirs.to(dtype)
    idx, targets = torch.randint(ours.config.vocab_size, (2, 2, ours.config.block_size))
    logits, loss = ours(idx), ours(idx, targets)
    reference = theirs(idx).logits
    torch.nn.functional.cross_entropy(reference.flatten(0, 1), targets.flatten()).backward()
    loss.backward()
    assert (logits - reference).abs().max() < tolerance
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    gradients = hf.state_to_hf(gradients, theirs.config.model_type, ours.config)
    named = dict(theirs.named_parameters())
    if "lm_head.weight" in named and "embed_out.weight" in gradients:
        # As the file says; the class has another name for it.
        gradients["lm_head.weight"] = gradients.pop("embed_out.weight")
    assert gradients.keys() == named.keys()
    for name, parameter in named.items():
        assert (parameter.grad - gradients[name]).abs().max() < tolerance, name


def test_a_checkpoint_in_shards_and_one_in_the_older_format_load(tmp_path):
    theirs = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    state = {k.replace("lm_head", "embed_out"): v for k, v in theirs.state_dict().items()}
    state["gpt_neox.layers.0.attention.bias"] = torch.ones(
        1, 1, 8, 8
    )  # Pythia's first files carry the causal mask
    (tmp_path / "bin").mkdir()
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "config.json").write_text((tmp_path / "shards" / "config.json").read_text())
    idx = torch.randint(97, (1, 16))
    for kind in ("shards", "bin"):
        assert torch.allclose(
            hf.from_pretrained(tmp_path / kind)(idx), theirs(idx).logits, atol=1e-5
        )


def test_gpt2_s_published_files_load_whose_names_lack_their_first_part(tmp_path):
    shape = dict(vocab_size=97, n_positions=32, n_embd=64, n_layer=2, n_head=4)
    theirs = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.1)).eval()
    state = {name.removeprefix("transformer."): p for name, p in theirs.named_parameters()}
    for layer in range(2):
        state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    theirs.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    idx = torch.randint(97, (1, 16))
    assert torch.allclose(hf.from_pretrained(tmp_path).eval()(idx), theirs(idx).logits, atol=1e-5)


@pytest.mark.parametrize(
    "shape, reason",
    [
        (dict(head_bias=True), "GPT-NeoX has no head_bias"),
        (dict(shared_norm=True), "Phi has no model without head_bias"),
        (GPT2 | dict(rotary_pct=0.5), "GPT-2 has no rotary_pct"),
        (dict(activation="swiglu"), "no swiglu"),
    ],
    ids=lambda value: str(value),
)
def test_a_model_that_no_family_has_is_not_exported(shape, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        hf.save_pretrained(random_model(**shape), tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("shape", [GPT2, PHI, MIX], ids=["gpt2", "phi", "mix"])
def test_exported_families_write_the_same_greedy_tokens_in_transformers(shape, tmp_path):
    ours = random_model(**shape | dict(block_size=128), noise=0.05)
    hf.save_pretrained(ours, tmp_path, eot=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code="n_mix" in shape)
    prompts = torch.randint(1, 97, (20, 12), generator=torch.Generator().manual_seed(0))
    how = dict(max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = theirs.generate(prompts, **how)[:, 12:].tolist()
    for use_cache in (True, False):
        found = generate(ours, prompts.tolist(), 64, temperature=0, use_cache=use_cache)
        assert found == expected
    uneven = [row[: 2 + n] for n, row in enumerate(prompts[:8].tolist())]
    alone = [generate(ours, [row], 64, temperature=0)[0] for row in uneven]
    for use_cache in (True, False):
        assert generate(ours, uneven, 64, temperature=0, use_cache=use_cache) == alone


def test_transformers_keeps_what_is_mixed_in_its_cache_or_refuses(tmp_path):
    """Padding, beams, guessed tokens, several at once, cut caches: as with no cache and alone."""
    hf.save_pretrained(random_model(**MIX, noise=0.05), tmp_path, eot=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    rows = [row[: 2 + n] for n, row in enumerate(torch.randint(1, 97, (4, 8)).tolist())]
    ids = torch.tensor([[0] * (5 - len(row)) + row for row in rows])
    greedy = dict(max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    for how in (greedy, greedy | dict(num_beams=3)):
        alone = [model.generate(torch.tensor([row]), use_cache=False, **how) for row in rows]
        alone = [written[0, len(row) :].tolist() for row, written in zip(rows, alone)]
        for use_cache in (True, False):
            done = model.generate(ids, attention_mask=ids.ne(0).long(), use_cache=use_cache, **how)
            assert done[:, 5:].tolist() == alone, how
    again = torch.tensor([rows[-1] * 2])
    guessed = model.generate(again, prompt_lookup_num_tokens=3, **greedy)
    assert guessed.tolist() == model.generate(again, use_cache=False, **greedy).tolist()

    idx = torch.randint(97, (2, 32))
    name = sys.modules[type(model).__module__].CACHE  # differs between versions of transformers
    whole, first = model(idx).logits, model(idx[:, :10], use_cache=True)
    cache = {name: first[name]}
    assert (model(idx[:, 10:17], **cache).logits - whole[:, 10:17]).abs().max() < 1e-5
    cache[name].crop(-4)
    assert (model(idx[:, 13:], **cache).logits - whole[:, 13:]).abs().max() < 1e-5
    with pytest.raises(ValueError, match="a DynamicCache only"):
        model.generate(ids, cache_implementation="static", **greedy)
    with pytest.raises(ValueError, match="one text a row"):  # two that are packed into it
        model(idx, position_ids=torch.arange(32)[None] % 16)
    for mask, reason in (torch.arange(32) != 7, "inside a text"), (torch.ones(1, 32, 32), "shape"):
        with pytest.raises(ValueError, match=reason):
            model(idx, attention_mask=mask.expand(2, *mask.shape))


def test_phi_2_has_as_many_parameters_as_published():
    with torch.device("meta"):
        model = NeoX(NeoXConfig(vocab_size=51200, **vars_of("phi2")))
    assert model.num_params() == 2_779_683_840
    assert memory.count_parameters(model.config).total == 2_779_683_840
    shape = vars_of("gpt2_124m")
    assert memory.count_parameters(NeoXConfig(vocab_size=50257, **shape)).total == 124_439_808


def vars_of(name):
    """The settings of the model in a file of config/."""
    cfg = configurator.load(train.Settings, [str(ROOT / f"config/{name}.py")])
    return {k: v for k, v in runs.model_settings(cfg).items() if k != "vocab_size"}


def test_the_loss_in_blocks_is_torchs_cross_entropy(monkeypatch):
    monkeypatch.setitem(fast.MAX_LOGITS, "cpu", 97 * 7)  # 7 rows at a time, the last block shorter
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((50, 16), (97, 16), (97,))
    )
    targets = torch.randint(97, (50,))
    targets[::5] = -100
    losses = (
        fast.LinearCrossEntropy.apply(x, weight, targets, bias),
        torch.nn.functional.cross_entropy(x @ weight.T + bias, targets),
    )
    assert torch.allclose(*losses, atol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(3 * loss, (x, weight, bias)) for loss in losses)):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("back, T", [(1, 9), (3, 9), (4, 3)])
def test_mix_is_a_causal_depthwise_convolution_of_what_a_position_may_look_at(back, T):
    mix = model_file.Mix(NeoXConfig(n_embd=16, n_head=1, n_mix=back, shared_norm=True)).double()
    x, kernel = torch.randn(2, T, 16).double(), torch.ones(16, 1, back + 1).double()
    assert torch.equal(mix(x), x)  # at first
    torch.nn.init.normal_(mix.weight)
    kernel[:, 0, :back] = mix.weight.detach().flip(0).T
    padded = torch.nn.functional.pad(x.mT, (back, 0))
    expected = torch.nn.functional.conv1d(padded, kernel, groups=16).mT
    assert torch.allclose(mix(x), expected)
    text = torch.arange(T) >= torch.tensor([0, 2])[:, None]  # the second row begins with padding
    mask = text[:, None, None] & torch.ones(T, T).tril().bool() | torch.eye(T).bool()
    assert torch.allclose(mix(x, mask)[0], expected[0])
    assert torch.allclose(mix(x, mask)[1, 2:], mix(x[1:, 2:])[0])


@pytest.mark.parametrize("shape", [dict(), MIX], ids=["neox", "mix"])
def test_the_fast_path_in_bfloat16_is_as_near_to_float64_as_the_plain_one(shape):
    """Gradients of a whole model: the hand-written forms against torch's operators."""
    model, exact = random_model(noise=0.02, **shape), random_model(noise=0.02, **shape).double()
    idx, targets = torch.randint(97, (2, 8, 32))
    wanted = torch.autograd.grad(exact(idx, targets), list(exact.parameters()))
    errors = []
    for switch in (lambda model: fast.use_fast_forms(model, "cpu"), fast.use_plain_forms):
        switch(model)
        mixes = [type(m) is fast.FastMix for m in model.modules() if hasattr(m, "stream")]
        assert all(mixes) and len(mixes) == (4 if shape and not errors else 0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(idx, targets)
        got = torch.autograd.grad(loss, list(model.parameters()))
        errors.append(
            sum((a - b).norm() for a, b in zip(got, wanted)) / sum(b.norm() for b in wanted)
        )
    assert errors[0] < 0.03 and errors[0] < 1.2 * errors[1], errors


def test_initial_weights_have_the_spreads_of_small_init_and_wang_init():
    model = NeoX(NeoXConfig(vocab_size=512, block_size=8, n_layer=4, n_head=4, n_embd=256))
    layer = model.gpt_neox.layers[0]
    for weight in (
        layer.attention.query_key_value.weight,
        layer.mlp.dense_h_to_4h.weight,
        model.embed_out.weight,
    ):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (5 * 256)), rel=0.02)
    for weight in (layer.attention.dense.weight, layer.mlp.dense_4h_to_h.weight):
        assert weight.std().item() == pytest.approx(2 / (4 * math.sqrt(256)), rel=0.02)
    idx, targets = torch.randint(512, (2, 64, 8))
    assert model(idx, targets).item() == pytest.approx(math.log(512), rel=0.05)


def test_a_newcomer_keeps_its_own_initial_values_and_is_not_exported(monkeypatch, tmp_path):
    class Gated(model_file.Attention):
        def __init__(self, config):
            super().__init__(config)
            self.gain = torch.nn.Parameter(torch.full((config.n_embd,), 2.0))
            self.gate = torch.nn.Linear(config.n_embd, 1)
            torch.nn.init.zeros_(self.gate.weight)

    mixing = random_model(**MIX)
    mixing.gpt_neox.mix.bias = torch.nn.Parameter(torch.zeros(64))
    with pytest.raises(ValueError, match=r"modeling_nanoneox.py has no gpt_neox.mix.bias"):
        hf.save_pretrained(mixing, tmp_path / "export")
    monkeypatch.setattr(model_file, "Attention", Gated)
    model = NeoX(NeoXConfig(**SMALL))
    for layer in model.gpt_neox.layers:
        assert (layer.attention.gain == 2).all() and not layer.attention.gate.weight.any()
        assert layer.attention.dense.weight.std() > 0
    with pytest.raises(ValueError, match="has no gpt_neox.layers.0.attention.gain"):
        hf.save_pretrained(model, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_overfits_one_batch():
    torch.manual_seed(0)
    model = NeoX(NeoXConfig(**SMALL | dict(n_layer=2)))
    idx = torch.randint(97, (4, 33))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = model(idx[:, :-1], idx[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


PROMPTS = [[1, 2, 3], [4] * 10, [5, 6] * 4]
SAMPLING = [
    dict(temperature=0),
    dict(temperature=1.0, seed=1),
    dict(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=3),
]


@pytest.mark.parametrize("how", SAMPLING, ids=["greedy", "sampled", "filtered"])
@pytest.mark.parametrize(
    "prompts",
    [PROMPTS[:1], PROMPTS, [list(range(90))]],
    ids=["one", "unequal", "longer than the context"],
)
def test_the_cache_changes_no_token_also_past_the_end_of_the_context(prompts, how):
    model = random_model().double()
    cached = generate(model, prompts, 100, **how)  # the context holds 32
    assert cached == generate(model, prompts, 100, use_cache=False, **how)
    assert [len(row) for row in cached] == [100] * len(prompts)


def test_past_the_end_the_model_sees_the_newest_half_of_the_context_and_what_follows():
    model = random_model().double()
    text = PROMPTS[1] + generate(model, PROMPTS[1:2], 100, temperature=0)[0]
    for end in range(len(PROMPTS[1]), len(text)):
        start = max(0, -(-(end - 32) // 16) * 16)  # the rule in generate's docstring, by arithmetic
        assert text[end] == model(torch.tensor([text[start:end]]))[0, -1].argmax(), end


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-12)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("padding", [[0], [0, 5]], ids=["one row", "padded batch"])
@pytest.mark.parametrize(
    "shape",
    [
        dict(activation="swiglu", rotary_pct=1.0),
        dict(parallel_residual=False, rotary_pct=0.0),
        dict(parallel_residual=False, activation="gelu_fast", rotary_pct=0.5),
        GPT2,
        PHI,
        MIX,
        dict(learned_positions=True, head_bias=True),
    ],
    ids=lambda shape: ",".join(f"{v}" for v in shape.values()),
)
def test_the_decoder_s_logits_are_the_plain_model_s(shape, padding, dtype, tolerance):
    model = random_model(**shape).to(dtype).requires_grad_(False)
    idx = torch.randint(97, (len(padding), 20))
    real = torch.arange(20) >= torch.tensor(padding)[:, None]
    mask = real[:, None, None] & torch.ones(20, 20).tril().bool() | torch.eye(20).bool()
    expected = model(idx, mask=mask)
    decoder = Decoder(model, len(padding))
    for start, stop in [(0, 12)] + [(t, t + 1) for t in range(12, 20)]:
        logits = decoder(
            idx[:, start:stop], start, mask[:, :, start:stop, :stop] if max(padding) else None
        )
        assert (logits - expected[:, stop - 1]).abs().max() < tolerance * expected.abs().max(), stop


def test_a_batch_of_unequal_prompts_gives_what_each_prompt_gives_alone():
    model = random_model().double()
    together = generate(model, PROMPTS, 20, temperature=0)
    assert together == [generate(model, [prompt], 20, temperature=0)[0] for prompt in PROMPTS]


def test_seed_stop_and_stream():
    model = random_model()
    first = generate(model, PROMPTS, 30, seed=7)
    assert first == generate(model, PROMPTS, 30, seed=7) != generate(model, PROMPTS, 30, seed=8)
    stopped = generate(model, PROMPTS, 30, seed=7, stop_ids=[first[0][4]])
    streamed = list(stream(model, PROMPTS, 30, seed=7, stop_ids=[first[0][4]]))
    assert stopped[0] == first[0][: first[0].index(first[0][4]) + 1]
    assert [
        [step[row] for step in streamed if step[row] is not None] for row in range(3)
    ] == stopped

    def decode(ids):
        return "".join(chr(i + 32) for i in ids)

    stop = decode(first[1][9:12])
    by_text = generate(model, PROMPTS, 30, seed=7, stop=lambda ids: stop in decode(ids))[1]
    assert (
        decode(by_text).endswith(stop)
        and by_text == first[1][: len(by_text)]
        and len(by_text) <= 12
    )
    allowed = [[11, 12], [13], [14, 15, 16]]
    begun = generate(model, PROMPTS, 5, seed=7, first_ids=allowed)
    assert all(row[0] in ids for row, ids in zip(begun, allowed)) and any(
        row[1] not in ids for row, ids in zip(begun, allowed)
    )


def test_filters_keep_the_tokens_that_transformers_keeps():
    logits = torch.randn(64, 97, generator=torch.Generator().manual_seed(0)) * 3
    for k, p in [(5, 1.0), (0, 0.7), (20, 0.5), (97, 0.999), (1, 0.1)]:
        expected = TopKLogitsWarper(k)(None, logits) if k else logits
        expected = TopPLogitsWarper(p)(None, expected) if p < 1 else expected
        allowed = expected.softmax(-1) > 0
        drawn = torch.zeros_like(allowed)
        for seed in range(200):
            ids = choose(logits, torch.Generator().manual_seed(seed), 1.0, k, p)
            drawn[torch.arange(64), ids] = True
        assert not (drawn & ~allowed).any()
        assert (drawn | ~(expected.softmax(-1) > 0.05)).all()  # and what is likely does appear


def test_repetition_penalty_is_the_reference_s():
    model, prompt = random_model().double(), [3, 5, 3, 8]
    theirs = model(torch.tensor([prompt]))[:, -1].float()
    penalised = RepetitionPenaltyLogitsProcessor(5.0)(torch.tensor([prompt]), theirs)
    assert (
        generate(model, [prompt], 1, temperature=0, repetition_penalty=5.0)[0][0]
        == penalised.argmax()
    )


@pytest.mark.parametrize("tied", [False, True])
def test_counts_of_parameters_and_flops(tied):
    model = NeoX(NeoXConfig(**SMALL, tie_embeddings=tied))
    theirs = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            tie_word_embeddings=tied,
        )
    )
    assert model.num_params() == theirs.num_parameters()
    idx = torch.randint(97, (2, 32))
    fast.use_fast_forms(model, "cpu")
    with FlopCounterMode(display=False) as counter:
        model(idx, idx).backward()
    assert model.flops_per_token() == pytest.approx(
        counter.get_total_flops() / idx.numel(), rel=0.03
    )
