# Instructions on two CPU cores: the quickstart's model learns to answer, in three minutes.
# Data: python prepare/instruct.py --file=alpaca.json --tokenizer=out/python_cpu
# Then: python sample.py --ckpt=out/instruct --chat

dataset = "instruct"
init_from = "out/python_cpu"  # it brings its shape
out_dir = "out/instruct"
block_size = 128  # all of that model's context
batch_size = 32
optimizer = "muon"  # as in the pretraining,
lr, min_lr = 3e-3, 0.0  # a fifth of its rate: what it knows should stay
lr_schedule = "linear"
momentum = 0.85
warmup_iters = 10
max_iters = 100_000  # never reached:
max_minutes = 3.0  # the clock ends the run
compile = False  # compiling takes a minute on two cores
eval_interval = 50
eval_iters = 5
save_best = True  # 2,000 examples are soon learnt by heart: then best.pt is the better one
