# Shakespeare letter by letter on any GPU: the first lesson, with a model large enough to spell well.
# Data: python prepare/shakespeare.py
# On a T4, computed and not measured: 2.3 GiB of memory, 6 minutes at 16 TFLOP/s (a quarter of its float16 peak).

dataset = "shakespeare_char"
out_dir = "out/shakespeare_char"
n_layer, n_head, n_embd = 6, 6, 384  # 10.7M parameters: as many as a million letters can still teach something
dropout = 0.2  # the text is read 80 times over; without it the model learns it by heart
batch_size = 64  # 16,384 letters a step keep a GPU busy
max_iters = 5000
eval_interval = 250  # validation loss is lowest well before the end:
save_best = True  # so keep that checkpoint too
sample_prompt = "\n"
sample_tokens = 300
