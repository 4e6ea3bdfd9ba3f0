# Fine-tuning: the quickstart's model learns from two hundred handmade functions, on two CPU cores.
# Data: python prepare/handmade.py --tokenizer=out/python_cpu

dataset = "handmade"
out_dir = "out/finetune_handmade"
init_from = "out/python_cpu"  # made by config/python_cpu.py; it brings its shape
block_size = 128  # two thirds of the functions fit, the others lose their end; 256 was not tried
batch_size = 16  # 2,048 tokens a step, so a pass over the 21,000 is ten steps
max_iters = 60  # six passes
# Bits per byte of tasks/python.jsonl and of HumanEval, one run each: 1.26 and 1.26 before, 1.05 and
# 1.24 after; 1.03 and 1.26 after 100 steps; 1.02 and 1.32 with lr=1e-3.
lr, min_lr = 3e-4, 0.0
lr_schedule = "linear"
warmup_iters = 5  # AdamW's averages begin at nothing
weight_decay = 0.0  # the weights stay near those that were learnt before
compile = False  # on a GPU too, 60 steps are over before it would be done
eval_interval = 20  # two passes
eval_iters = 1  # 2,048 tokens, as many as the val split has
sample_prompt = "def"
sample_tokens = 60
