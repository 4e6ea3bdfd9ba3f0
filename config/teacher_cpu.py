# A student that learns from what a teacher writes while it learns: five minutes on two CPU cores.
# The teacher: python prepare/teacher.py --ckpt=out/python_cpu
# Data, beside it:
#       python prepare/stream.py --source=http://127.0.0.1:8001/generate --val=python \
#           --segment_tokens=65536 --out=teacher

dataset = "teacher"  # validated on clean text: data/python's
out_dir = "out/teacher_cpu"
n_layer, n_head, n_embd = 2, 4, 128  # 0.9M parameters, a quarter of the teacher's
block_size = 128  # a quarter of the teacher's context
batch_size = 16  # 2,048 tokens a step, about a second of the teacher's writing
optimizer = "muon"
lr, min_lr = 1.5e-2, 0.0
lr_schedule = "linear"
momentum = 0.85  # few steps, as in config/python_cpu.py
rotary_pct = 1.0
tie_embeddings = True
warmup_iters = 10
max_iters = 300
eval_interval = 50
eval_iters = 10
