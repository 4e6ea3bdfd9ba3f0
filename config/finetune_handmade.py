# Fine-tuning: the quickstart's model learns from two hundred handmade functions, on two CPU cores.
# Data: python prepare/handmade.py --tokenizer=out/python_cpu

dataset = "handmade"
out_dir = "out/finetune_handmade"
init_from = "out/python_cpu"  # made by config/python_cpu.py; it brings its shape
block_size = 128  # that model's context
batch_size = 16  # 2,048 tokens a step, so a pass over the 19,000 is nine steps
max_iters = 60  # six passes
lr, min_lr = 3e-4, 0.0  # of AdamW. 1e-3 got tasks/python.jsonl from 1.26 to 1.00 bits per byte, not
# to 1.04, but HumanEval from 1.26 to 1.32, not to 1.25: one run each
lr_schedule = "linear"
warmup_iters = 5  # AdamW's averages begin at nothing
weight_decay = 0.0  # the weights stay near those that were learnt before
compile = False  # compiling takes longer than the whole training
eval_interval = 20  # two passes
eval_iters = 4  # 8,000 tokens: the val split has 2,000
sample_prompt = "def"
sample_tokens = 60
