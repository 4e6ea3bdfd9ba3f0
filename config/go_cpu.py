# Go completion from nothing on two CPU cores. The reasons are in config/python_cpu.py.
# Data: python prepare/go.py (the library of the Go installed here, or your code with --path=DIR)

dataset = "go"
out_dir = "out/go_cpu"
n_layer, n_head, n_embd = 3, 2, 256
n_mix, shared_norm = 2, True
block_size = 512
batch_size = 8  # 4,096 tokens a step
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
sample_prompt = "func"
sample_tokens = 60
