"""model.py against transformers' GPTNeoX, torch's own FLOP counter, and itself by other ways."""

import itertools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

import model as model_file
from model import NeoX, NeoXConfig

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
]  # fmt: skip


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: ",".join(f"{v}" for v in shape.values()))
def test_same_logits_and_gradients_as_transformers_in_both_directions(shape, dtype, tolerance, tmp_path):
    ours = random_model(noise=0.02, **shape)
    ours.save_pretrained(tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = NeoX.from_pretrained(tmp_path / "theirs")
    assert back.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), back.state_dict().values(), strict=True))

    ours, theirs = ours.to(dtype), theirs.to(dtype)
    idx, targets = torch.randint(ours.config.vocab_size, (2, 2, ours.config.block_size))
    logits, loss = ours(idx, targets)
    reference = theirs(idx).logits
    torch.nn.functional.cross_entropy(reference.flatten(0, 1), targets.flatten()).backward()
    loss.backward()
    assert (logits - reference).abs().max() < tolerance
    gradients = {name.replace("lm_head", "embed_out"): p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - gradients[name]).abs().max() < tolerance, name


def test_a_checkpoint_in_shards_and_one_in_the_older_format_load(tmp_path):
    theirs = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=97, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4))
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    state = {k.replace("lm_head", "embed_out"): v for k, v in theirs.state_dict().items()}
    state["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 8, 8)  # Pythia's first files carry the causal mask
    (tmp_path / "bin").mkdir()
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "config.json").write_text((tmp_path / "shards" / "config.json").read_text())
    idx = torch.randint(97, (1, 16))
    for kind in ("shards", "bin"):
        assert torch.allclose(NeoX.from_pretrained(tmp_path / kind)(idx)[0], theirs(idx).logits, atol=1e-5)


def test_the_two_forms_of_attention_agree_forward_and_backward():
    model = random_model()
    idx, targets = torch.randint(97, (2, 2, 32))
    plain = model(idx, targets)[1]
    plain.backward()
    gradient = model.gpt_neox.embed_in.weight.grad.clone()
    with torch.no_grad():
        fused = model(idx, targets)[1]
    assert torch.allclose(plain, fused, atol=1e-6) and gradient.abs().sum() > 0


def test_initial_weights_have_the_spreads_of_small_init_and_wang_init():
    model = NeoX(NeoXConfig(vocab_size=512, block_size=8, n_layer=4, n_head=4, n_embd=256))
    layer = model.gpt_neox.layers[0]
    for weight in (layer.attention.query_key_value.weight, layer.mlp.dense_h_to_4h.weight, model.embed_out.weight):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (5 * 256)), rel=0.02)
    for weight in (layer.attention.dense.weight, layer.mlp.dense_4h_to_h.weight):
        assert weight.std().item() == pytest.approx(2 / (4 * math.sqrt(256)), rel=0.02)
    assert model(torch.randint(512, (2, 8)), torch.randint(512, (2, 8)))[1].item() == pytest.approx(math.log(512), rel=0.05)


def test_overfits_one_batch():
    torch.manual_seed(0)
    model = NeoX(NeoXConfig(**SMALL | dict(n_layer=2)))
    idx = torch.randint(97, (4, 33))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = model(idx[:, :-1], idx[:, 1:])[1]
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
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS, [list(range(90))]], ids=["one", "unequal", "longer than the context"])
def test_the_cache_changes_no_token_also_past_the_end_of_the_context(prompts, how):
    model = random_model().double()
    cached = model.generate(prompts, 100, **how)  # the context holds 32
    assert cached == model.generate(prompts, 100, use_cache=False, **how)
    assert [len(row) for row in cached] == [100] * len(prompts)


def test_past_the_end_the_model_sees_the_newest_half_of_the_context_and_what_follows():
    model = random_model().double()
    text = PROMPTS[1] + model.generate(PROMPTS[1:2], 100, temperature=0)[0]
    for end in range(len(PROMPTS[1]), len(text)):
        start = max(0, -(-(end - 32) // 16) * 16)  # the rule in generate's docstring, by arithmetic
        assert text[end] == model(torch.tensor([text[start:end]]))[0][0, -1].argmax(), end


def test_a_batch_of_unequal_prompts_gives_what_each_prompt_gives_alone():
    model = random_model().double()
    together = model.generate(PROMPTS, 20, temperature=0)
    assert together == [model.generate([prompt], 20, temperature=0)[0] for prompt in PROMPTS]


def test_seed_stop_and_stream():
    model = random_model()
    first = model.generate(PROMPTS, 30, seed=7)
    assert first == model.generate(PROMPTS, 30, seed=7) != model.generate(PROMPTS, 30, seed=8)
    streamed = []
    stopped = model.generate(PROMPTS, 30, seed=7, stop_ids=[first[0][4]], stream=streamed.append)
    assert stopped[0] == first[0][: first[0].index(first[0][4]) + 1]
    assert [[step[row] for step in streamed if step[row] is not None] for row in range(3)] == stopped
    decode = lambda ids: "".join(chr(i + 32) for i in ids)  # noqa: E731
    stop = decode(first[1][9:12])
    by_text = model.generate(PROMPTS, 30, seed=7, stop=lambda ids: stop in decode(ids))[1]
    assert decode(by_text).endswith(stop) and by_text == first[1][: len(by_text)] and len(by_text) <= 12
    allowed = [[11, 12], [13], [14, 15, 16]]
    begun = model.generate(PROMPTS, 5, seed=7, first_ids=allowed)
    assert all(row[0] in ids for row, ids in zip(begun, allowed)) and any(row[1] not in ids for row, ids in zip(begun, allowed))


def test_filters_keep_the_tokens_that_transformers_keeps():
    logits = torch.randn(64, 97, generator=torch.Generator().manual_seed(0)) * 3
    for k, p in [(5, 1.0), (0, 0.7), (20, 0.5), (97, 0.999), (1, 0.1)]:
        expected = TopKLogitsWarper(k)(None, logits) if k else logits
        expected = TopPLogitsWarper(p)(None, expected) if p < 1 else expected
        allowed = expected.softmax(-1) > 0
        drawn = torch.zeros_like(allowed)
        for seed in range(200):
            ids = model_file.choose(logits, 1.0, k, p, torch.Generator().manual_seed(seed))
            drawn[torch.arange(64), ids] = True
        assert not (drawn & ~allowed).any()
        assert (drawn | ~(expected.softmax(-1) > 0.05)).all()  # and what is likely does appear


def test_repetition_penalty_is_the_reference_s():
    model, prompt = random_model().double(), [3, 5, 3, 8]
    theirs = model(torch.tensor([prompt]))[0][:, -1].float()
    penalised = RepetitionPenaltyLogitsProcessor(5.0)(torch.tensor([prompt]), theirs)
    assert model.generate([prompt], 1, temperature=0, repetition_penalty=5.0)[0][0] == penalised.argmax()


@pytest.mark.parametrize("tied", [False, True])
def test_counts_of_parameters_and_flops(tied):
    model = NeoX(NeoXConfig(**SMALL, tie_embeddings=tied))
    theirs = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=97, hidden_size=64, intermediate_size=256, num_hidden_layers=3,
                                              num_attention_heads=4, tie_word_embeddings=tied))  # fmt: skip
    assert model.num_params() == theirs.num_parameters()
    idx = torch.randint(97, (2, 32))
    with FlopCounterMode(display=False) as counter:
        model(idx, idx)[1].backward()
    assert model.flops_per_token() == pytest.approx(counter.get_total_flops() / idx.numel(), rel=0.03)


def test_memory_estimate_counts_what_a_step_holds():
    config = NeoXConfig(vocab_size=3000, block_size=640, n_layer=4, n_head=4, n_embd=128)  # long enough for fused attention
    model, estimate = NeoX(config), model_file.estimate_memory(config, batch_size=2)
    optimizer = torch.optim.AdamW(model.parameters())
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    idx = torch.randint(3000, (2, 640))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(idx, idx)[1]
    activations = sum(t.untyped_storage().nbytes() for t in saved.values())
    loss.backward()
    optimizer.step()
    states = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    assert estimate["weights"] == estimate["gradients"] == sum(p.nbytes for p in model.parameters())
    assert estimate["optimizer"] == pytest.approx(states, rel=0.01)
    logits = idx.numel() * 3000 * 4  # backward keeps one copy; the estimate adds the two that live for a moment
    assert estimate["activations"] == pytest.approx(activations - logits, rel=0.15)
    assert estimate["logits"] == 3 * logits
