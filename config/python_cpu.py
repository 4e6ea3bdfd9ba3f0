# Python completion from nothing on two CPU cores: five minutes to something that looks like Python.
# Data: python prepare/python.py

dataset = "python"
out_dir = "out/python_cpu"
n_layer, n_head, n_embd = 4, 4, 256  # wider or deeper learns too little in five minutes
block_size = 128  # a dozen lines; twice as many cost a quarter of the speed, and this model would hardly use them
batch_size = 32  # 4,096 tokens a step: fewer make Muon's own work weigh more, more make too few steps
optimizer = "muon"  # at equal time far ahead of AdamW here
lr, min_lr = 1.5e-2, 0.0  # few steps, so large ones, down to nothing
lr_schedule = "linear"  # 1 % fewer bits per byte than the cosine after 120 steps
tie_embeddings = True  # the same again: each token's one row learns from reading and from writing it; 4.2M parameters
warmup_iters = 10
max_iters = 100_000  # never reached:
max_minutes = 4.5  # the clock ends the run, so that it takes as long, and ends as well annealed, on any machine
compile = False  # it takes half a minute here and then makes a step 1.1 times as fast: not worth it in five minutes
eval_interval = 250
eval_iters = 10  # 41,000 tokens, two seconds
sample_prompt = "def "
sample_tokens = 60
