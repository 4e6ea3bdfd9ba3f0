# GPT-2 small (Radford et al. 2019) from random weights: 124M parameters, English web text, one card
# of 48 GB.
# Data: python prepare/web.py --max_mb=12000
# Computed, not measured (python tools/plan.py config/gpt2_124m.py --gpu=l40s): 28 to 31 GiB of
# memory, and 4 to 12 hours on an L40S, at 15 to 40 % of its bfloat16 peak.

dataset = "web"
out_dir = "out/gpt2_124m"
device = "cuda"  # so that a machine without a GPU says so, instead of training for years
learned_positions = True  # GPT-2's form: positions are learnt, not rotary;
rotary_pct = 0.0
parallel_residual = False  # the MLP reads what attention wrote;
tie_embeddings = True  # one table for input and output
activation = "gelu_new"
vocab_size = 50_257  # GPT-2's, whatever the data's tokenizer: the file has the published shape
n_layer, n_head, n_embd = 12, 12, 768
block_size = 1024
batch_size = 64  # its activations take 24 of the 29 GiB
grad_accum = 8  # 524,288 tokens a step, about GPT-2's 512 x 1,024
lr, min_lr = 6e-4, 6e-5  # GPT-3's for this size (Brown et al. 2020, table 2.1)
warmup_iters = 700
max_iters = 5000  # 2.6 billion tokens, 21 for each parameter (Hoffmann et al. 2022)
eval_interval = 250
save_minutes = 20.0
sample_prompt = "The"
