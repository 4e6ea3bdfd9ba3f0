# Phi's form from random weights on two CPU cores: five minutes.
# Data: python prepare/python.py

dataset = "python"
out_dir = "out/phi_cpu"
shared_norm = True  # attention and MLP read one LayerNorm,
head_bias = True  # the output head has a bias,
rotary_pct = 0.5  # half of each head is rotated: what makes it a Phi
activation = "gelu_new"
vocab_size = 51_200  # Phi's tables, so the first loss is ln 51,200 = 10.8; tokens may be fewer
n_layer, n_head, n_embd = 4, 4, 128  # 13.9M parameters, 13.2M of them in the two tables
block_size = 128
batch_size = 16
optimizer = "muon"
lr, min_lr = 1e-2, 0.0
lr_schedule = "linear"
momentum = 0.85  # few steps, as in config/python_cpu.py
warmup_iters = 10
max_iters = 100_000  # never reached:
max_minutes = 5.0  # the clock ends the run, on any machine: start and evaluations count
eval_interval = 100
eval_iters = 5
sample_prompt = "def"
sample_tokens = 40
