# config/python_cpu.py as a plain GPT-NeoX, which transformers, llama.cpp and others load as it is.
# Data: python prepare/python.py --max_share=0.05 --max_kb=100 --tests=False --fim_rate=0.2 \
#           --fim_context=512

dataset = "python"
out_dir = "out/python_neox_cpu"
n_layer, n_head, n_embd = 3, 4, 256  # 2 heads, enough with n_mix, had 1 and 5 % more bits
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
sample_prompt = "def"
sample_tokens = 60
