# Fine-tuning: the quickstart's model on two hundred handmade functions, two minutes on two CPU cores.
# Data: python prepare/handmade.py --tokenizer=out/python_cpu

dataset = "handmade"
out_dir = "out/finetune_handmade"
init_from = "out/python_cpu"  # from config/python_cpu.py, with its shape and tokenizer
block_size = 128  # the model's context
batch_size = 16
max_iters = 60
optimizer = "adamw"
lr, min_lr = 3e-4, 0.0
lr_schedule = "linear"
warmup_iters = 5
weight_decay = 0.0
compile = False
eval_interval = 20
eval_iters = 4
sample_prompt = "def"
sample_tokens = 60
