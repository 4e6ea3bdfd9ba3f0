# Python completion from nothing on two CPU cores: five minutes to something that looks like Python.
# Data: python prepare/python.py --max_share=0.02 --max_kb=60 --tests=False --fim_rate=0.2 \
#           --fim_context=256
# Each choice is an experiment in docs/RESULTS.md, "Better small models".

dataset = "python"
out_dir = "out/python_cpu"
n_layer, n_head, n_embd = 4, 4, 256  # a wider or deeper model learns too little in five minutes
# Each position is mixed with the two before it: 7 % fewer bits after as many tokens. GPT-NeoX has
# no such thing, so transformers needs trust_remote_code=True, and llama.cpp cannot load the model;
# config/python_neox_cpu.py is the plain form.
n_mix, shared_norm = 2, True
block_size = 256  # a function with its neighbours: 0.7 % fewer bits than 128 after 84 s
batch_size = 16  # 4,096 tokens a step
optimizer = "muon"
lr, min_lr = 1.5e-2, 0.0  # few steps, so large ones, decaying to nothing
lr_schedule = "linear"
momentum = 0.85
beta1, beta2 = 0.65, 0.98
rotary_pct = 1.0
tie_embeddings = True  # a token's row learns as input and output; 4.2M parameters
warmup_iters = 10
max_iters = 100_000  # never reached:
max_minutes = 5.0  # the clock ends the run, on any machine: start and evaluations count
eval_interval = 500
eval_iters = 20  # 41,000 tokens, two or three seconds
sample_prompt = "def"
sample_tokens = 60
