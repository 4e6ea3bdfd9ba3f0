# Shakespeare character by character on a CPU: the first lesson, in two minutes.
# Data: python prepare/shakespeare.py

dataset = "shakespeare_char"
out_dir = "out/shakespeare_cpu"
n_layer, n_head, n_embd = 4, 4, 128  # 0.8M parameters, the size of nanoGPT's lesson for CPUs
block_size = 64  # a line or two of verse
batch_size = 32  # 2,048 characters a step
optimizer = "muon"  # reaches AdamW's loss in a fraction of the steps
lr, min_lr = 1e-2, 0.0  # few steps, so large ones, decaying to nothing,
momentum = 0.9  # and a shorter memory of past gradients
rotary_pct = 1.0  # 0.02 nats in the trials for config/shakespeare_speedrun.py
warmup_iters = 20
max_iters = 800
eval_interval = 200
sample_prompt = "\n"
sample_tokens = 200
