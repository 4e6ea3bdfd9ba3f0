# English web text on a T4, from a stream: the text is fetched while the model trains.
# Data, in another terminal, for as long as the training runs:
#       python prepare/stream.py --source="hub:HuggingFaceFW/fineweb-edu?name=sample-10BT" --prose \
#           --pattern=gpt2 --vocab_size=16384 --fim_rate=0 --out=fineweb
#       python train.py config/fineweb_t4.py
# Computed, not measured (python tools/plan.py config/fineweb_t4.py --gpu=t4 --vocab_size=16384):
# about 4 GiB of memory, and 2.1 to 5.7 hours, at 15 to 40 % of the T4's float16 peak.

dataset = "fineweb"
out_dir = "out/fineweb_t4"
device = "cuda"  # so that Colab without a GPU says so, instead of training for a week
n_layer, n_head, n_embd = 8, 8, 512  # 42.0M parameters, 16.8M of them in the two tables of tokens
block_size = 1024  # about a page
batch_size = 16  # as many tokens as 32 x 512
grad_accum = 4  # 65,536 tokens a step
max_iters = 12_000  # 786M tokens, 19 for each parameter (Hoffmann et al. 2022: 20)
warmup_iters = 200
eval_interval = 500
sample_prompt = "The"
