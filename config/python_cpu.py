# Python completion from nothing on two CPU cores: five minutes to something that looks like Python.
# Data: python prepare/python.py --max_share=0.02 --max_kb=60 --tests=False --fim_rate=0.2 \
#           --fim_context=256
# The trials behind each choice are in docs/RESULTS.md, "Better small models".

dataset = "python"
out_dir = "out/python_cpu"
n_layer, n_head, n_embd = 4, 4, 256  # a wider or deeper model learns too little in five minutes
# Each position is mixed with the two before it: 2 % fewer bits after five minutes on two fast
# cores, 5 % and more where they hold half as many steps. GPT-NeoX has no such thing: transformers
# needs trust_remote_code=True, llama.cpp cannot load the model. config/python_neox_cpu.py is
# the plain form.
n_mix, shared_norm = 2, True
block_size = 256  # a function with its neighbours: 0.7 % fewer bits than 128 after 84 s
batch_size = 16  # 4,096 tokens a step; half of them make no better use of as many tokens
optimizer = "muon"
lr, min_lr = 1.5e-2, 0.0  # few steps, so large ones, decaying to nothing
lr_schedule = "linear"
momentum = 0.85  # 0.92 had 2 % more bits after 300 steps
beta1, beta2 = 0.65, 0.98  # 1.3 % fewer bits than 0.9 and 0.95 after 300 steps
rotary_pct = 1.0
tie_embeddings = True  # a token's row learns as input and output; 4.2M parameters
warmup_iters = 10
max_iters = 100_000  # never reached:
max_minutes = 5.0  # the clock ends the run, on any machine: start and evaluations count
eval_interval = 200
eval_iters = 10  # 41,000 tokens, about two seconds
sample_prompt = "def"
sample_tokens = 60
