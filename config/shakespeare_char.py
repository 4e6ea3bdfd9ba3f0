# Shakespeare character by character on any GPU: the first lesson, with a model that spells well.
# Data: python prepare/shakespeare.py
# On a T4, computed, not measured (tools/plan.py): 2 to 3 GiB of memory, and 4 to 12 minutes, at 15
# to 40 % of its float16 peak.

dataset = "shakespeare_char"
out_dir = "out/shakespeare_char"
device = "cuda"  # so that Colab without a GPU says so; for a CPU there is shakespeare_cpu.py
n_layer, n_head, n_embd = 6, 6, 384  # 10.7M parameters: as many as a million characters can teach
dropout = 0.2  # the text is read 80 times; without dropout the model learns it by heart
batch_size = 64  # 16,384 characters a step keep a GPU busy
max_iters = 5000
eval_interval = 250  # the validation loss is lowest well before the end,
save_best = True  # so keep that checkpoint too
sample_prompt = "\n"
sample_tokens = 300
