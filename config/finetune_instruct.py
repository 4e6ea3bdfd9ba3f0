# Instructions on two CPU cores: the quickstart's model learns to answer, in three minutes.
# Data: python prepare/instruct.py --file=alpaca.json --tokenizer=out/python_cpu
# Then: python eval.py --ckpt=out/instruct, python sample.py --ckpt=out/instruct --chat

dataset = "instruct"
init_from = "out/python_cpu"  # it brings its shape
out_dir = "out/instruct"
block_size = 256  # a longer conversation loses its end: 4 % of Code Alpaca's, and 29 % with 128
batch_size = 16
dropout = 0.1  # 2,000 examples are read several times
optimizer = "muon"  # this and the next lines as in config/python_cpu.py, but
lr, min_lr = 3e-3, 0.0  # a fifth of the rate: what it knows should stay
lr_schedule = "linear"
momentum = 0.85
warmup_iters = 10
max_iters = 100_000  # never reached:
max_minutes = 3.0  # the clock ends the run
eval_interval = 50
eval_iters = 10  # 160 conversations
save_best = True  # where the answers are learnt by heart, best.pt is the better one
