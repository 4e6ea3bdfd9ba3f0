# Sentiment on two CPU cores: the model of config/english_cpu.py learns to judge, in two minutes.
# Data: python prepare/sentiment.py --file=train.tsv --val_file=dev.tsv --tokenizer=out/english_cpu
# Then: python eval.py --ckpt=out/sentiment --tasks=sentiment --file=test.tsv
# The accuracies are on SST-2's dev.tsv, one run each.

dataset = "sentiment"
init_from = "out/english_cpu"  # it brings its shape
out_dir = "out/sentiment"
block_size = 64  # a sentence or two of SST-2, whose longest has 52 words; for long reviews 200
batch_size = 32  # about 60 labels a step
dropout = 0.6  # 7,000 sentences are soon learnt by heart: 0.3 got to 0.73; with 0.7 none is learnt
optimizer = "muon"  # 0.73 after 300 steps with a dropout of 0.3; AdamW with 0.2 or 0.5 had 0.70
lr, min_lr = 5e-3, 0.0  # a third of the pretraining's; 1e-2 got to 0.76, this to 0.77
lr_schedule = "linear"
momentum = 0.9
weight_decay = 0.5  # more than in the pretraining, for the same reason as the dropout
warmup_iters = 20
max_iters = 100_000  # never reached:
max_minutes = 2.0  # the clock ends the run, after five or so readings of the sentences
eval_interval = 100
eval_iters = 10  # 320 windows
