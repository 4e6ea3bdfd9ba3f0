# Shakespeare in word pieces on a T4: a small GPT-NeoX in minutes.
# Data: python prepare/shakespeare.py --tokenizer=bpe
# Computed and not measured: 1.5 GiB of memory, 1 minute at 16 TFLOP/s (a quarter of a T4's float16 peak); such a small
# model will keep a T4 waiting for Python, so expect three.

dataset = "shakespeare_bpe"
out_dir = "out/shakespeare_t4"
n_layer, n_head, n_embd = 4, 4, 256  # 5.7M parameters, half of them the tables of 5,000 word pieces
dropout = 0.2  # 0.3M tokens of text are read 80 times over
batch_size = 64
max_iters = 1500
eval_interval = 100
save_best = True  # with so little text the validation loss turns up again before the end
sample_prompt = "ROMEO:"
