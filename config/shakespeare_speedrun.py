# Shakespeare character by character, to a validation loss of 1.88 as soon as possible on a CPU.
# tools/speedrun.py times it.
# Data: python prepare/shakespeare.py

dataset = "shakespeare_char"
out_dir = "out/shakespeare_speedrun"
# 0.8M parameters. Three layers, or a width of 96, lost more per step than they gained in speed.
n_layer, n_head, n_embd = 4, 4, 128
block_size = 64  # the target loss is for this context
n_mix, shared_norm = 2, True  # 0.09 nats after 340 steps; GPT-NeoX has no such thing
rotary_pct = 1.0  # 0.02 nats after 500 steps
rotary_base = 100.0  # longest wavelength near the context: 0.008 nats after 350 steps
tie_embeddings = True  # 0.02 nats after 500 steps
activation = "swiglu"  # 0.02 nats after 365 steps, two seeds; Hugging Face lacks it, so no export
batch_size = 8  # many small steps: 300 of 1,024 characters got to 1.89, 150 of 2,048 to 1.99
optimizer = "muon"
lr, min_lr = 2e-2, 0.0
lr_schedule = "linear"
momentum = 0.85  # 0.05 nats after 400 steps; with 0.95, gradients 20 steps old still count
beta1, beta2 = 0.6, 0.99  # for the same reason; from 0.9 to 0.8 alone: 0.011 nats after 350 steps
grad_clip = 0.0  # 0.003 nats
warmup_iters = 10
max_iters = 190  # got to 1.874 and 1.875 with rates of 1.8e-2 and 2.2e-2, one run each
compile = False  # compiling takes longer than the whole run
eval_interval = 0
eval_iters = 10
