# Phi-2's form (2.78B parameters) from random weights, on four 80 GB cards:
#
#     torchrun --nproc_per_node=4 train.py config/phi2.py
#
# Data: python prepare/python.py --source=the-stack --tokenizer=microsoft/phi-2 --fim_rate=0
# Computed, not measured (python tools/plan.py config/phi2.py --gpu=h100 --gpus=4): 40 to 45 GiB of
# memory a card, and 7 to 18 days on four H100, at 15 to 40 % of their bfloat16 peak. The first loss
# is about ln 51,200 = 10.8.

dataset = "python"
out_dir = "out/phi2"
device = "cuda"
shard = True  # weights, gradients and AdamW's state take 44 GB; each card holds a quarter
vocab_size = 51_200  # Phi-2's tables; its tokenizer has 50,295 tokens
n_layer, n_head, n_embd = 32, 32, 2560
block_size = 2048
rotary_pct = 0.4  # 32 of the 80 dimensions of a head
shared_norm = True  # attention and MLP read one LayerNorm
head_bias = True
activation = "gelu_new"
batch_size = 4  # a card: its activations take 23 of the 42 GiB; 9 would fit
grad_accum = 64  # over all cards: 524,288 tokens a step
lr, min_lr = 1.6e-4, 1.6e-5  # GPT-3's for this size (Brown et al. 2020, table 2.1)
warmup_iters = 2000
max_iters = 100_000  # 52 billion tokens, 19 for each parameter (Hoffmann et al. 2022)
eval_interval = 1000
save_minutes = 30.0
