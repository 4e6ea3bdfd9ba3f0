# config/python_cpu.py with each position mixed with the two before it: 7 % fewer bits after 0.6M
# tokens, but no fewer after all that five minutes hold (docs/RESULTS.md, "Five minutes, in turns").
# GPT-NeoX has no such thing: transformers needs trust_remote_code=True, llama.cpp cannot load it.
# Data: python prepare/python.py --max_share=0.02 --max_kb=60 --tests=False --fim_rate=0.2 \
#           --fim_context=256

dataset = "python"
out_dir = "out/python_mix_cpu"
n_layer, n_head, n_embd = 4, 4, 256
n_mix, shared_norm = 2, True
block_size = 256
batch_size = 16
optimizer = "muon"
lr, min_lr = 1.5e-2, 0.0
lr_schedule = "linear"
momentum = 0.85
beta1, beta2 = 0.65, 0.98
rotary_pct = 1.0
tie_embeddings = True
warmup_iters = 10
max_iters = 100_000
max_minutes = 5.0
eval_interval = 200
eval_iters = 10
sample_prompt = "def"
sample_tokens = 60
