# Python completion on a T4.
# Data: python prepare/python.py --fim_context=512 (the code installed here), or, for a model worth
#       keeping, also --source=the-stack --min_stars=10 --max_mb=2000
# Computed, not measured (tools/plan.py): about 4 GiB of memory, and 43 to 116 minutes, at 15 to 40
# % of the T4's float16 peak.

dataset = "python"
out_dir = "out/python_t4"
device = "cuda"  # so that Colab without a GPU says so, instead of training for a week
n_layer, n_head, n_embd = 8, 8, 512  # 33.6M parameters
block_size = 512  # a Python function with its neighbours
batch_size = 32  # its activations take 2.4 GiB of the 4; four times as many would fit
grad_accum = 2  # 32,768 tokens a step
max_iters = 10_000  # 328M tokens, 10 for each parameter
warmup_iters = 200
eval_interval = 500
sample_prompt = "def"
