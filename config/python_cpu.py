# Python completion from nothing on two CPU cores: five minutes to something that looks like Python.
# Data: python prepare/python.py

dataset = "python"
out_dir = "out/python_cpu"
n_layer, n_head, n_embd = 4, 4, 256  # a wider or deeper model learns too little in five minutes
# A dozen lines. One run with 256, and half the tokens a step, got to 1.80 bits per byte, not 1.62.
block_size = 128
batch_size = 32  # 4,096 tokens a step; with fewer, Muon's own work takes a larger share of the time
optimizer = "muon"  # 2.33 bits per byte after 75 s, AdamW 2.43: one run each, rates not tuned
lr, min_lr = 1.5e-2, 0.0  # few steps, so large ones, decaying to nothing
lr_schedule = "linear"  # 1 % fewer bits per byte than cosine after 120 steps, one run each
momentum = 0.85  # 1.89 bits per byte after 130 steps; 0.95 had 1.92
rotary_pct = 1.0  # 1.88 after as many steps
tie_embeddings = True  # 1 % fewer bits: a token's row learns as input and output; 4.2M parameters
warmup_iters = 10
max_iters = 100_000  # never reached:
max_minutes = 5.0  # the clock ends the run, on any machine: start and evaluations count
eval_interval = 150
eval_iters = 10  # 41,000 tokens, two or three seconds
sample_prompt = "def"
sample_tokens = 60
