# Shakespeare in BPE tokens on a T4: a small GPT-NeoX in minutes.
# Data: python prepare/shakespeare.py --tokenizer=bpe
# Computed, not measured (tools/plan.py): 1 to 2 GiB of memory, and 40 s to 3 minutes, at 15 to 40 %
# of a T4's float16 peak. With so small a model a T4 will wait for Python, so expect three.

dataset = "shakespeare_bpe"
out_dir = "out/shakespeare_t4"
device = "cuda"  # so that Colab without a GPU says so, instead of training for hours
n_layer, n_head, n_embd = 4, 4, 256  # 5.7M parameters, half in the two tables of 5,000 tokens
dropout = 0.2  # 0.3M tokens of text are read 80 times
batch_size = 64
max_iters = 1500
eval_interval = 100
save_best = True  # with so little text the validation loss rises again before the end
sample_prompt = "ROMEO:"
