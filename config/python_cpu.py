# Python completion from nothing on two CPU cores: five minutes to something that looks like Python.
# Data: python prepare/python.py --max_share=0.05 --max_kb=100 --tests=False --fim_rate=0.2 \
#           --fim_context=512
# The trials behind each choice are in docs/RESULTS.md, "Better small models".

dataset = "python"
out_dir = "out/python_cpu"
n_layer, n_head, n_embd = 3, 2, 256  # a larger model learns too little in five minutes
# Each position is mixed with the two before it: 3 to 4 % fewer bits after 1,200 steps, 7 % after
# 600, which is what five minutes on two cores hold, fast or slow. GPT-NeoX has no such thing:
# transformers needs trust_remote_code=True, llama.cpp cannot load the model.
# config/python_neox_cpu.py is the plain form.
n_mix, shared_norm = 2, True
block_size = 512  # a function with its neighbours: 2.7 % fewer bits than 256
batch_size = 8  # 4,096 tokens a step; half of them make no better use of as many tokens
optimizer = "muon"
lr, min_lr = 1.5e-2, 0.0  # few steps, so large ones, decaying to nothing
lr_schedule = "linear"
momentum = 0.85  # 0.92 had 2 % more bits after 300 steps
beta1, beta2 = 0.65, 0.98  # 1.3 % fewer bits than 0.9 and 0.95 after 300 steps
rotary_pct = 1.0
tie_embeddings = True  # a token's row learns as input and output; 3.4M parameters
warmup_iters = 10
max_iters = 100_000  # never reached:
max_minutes = 5.0  # the clock ends the run, on any machine: start and evaluations count
eval_interval = 200
eval_iters = 10  # 41,000 tokens, about two seconds
sample_prompt = "def"
sample_tokens = 60
