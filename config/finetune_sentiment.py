# Sentiment on two CPU cores: the model of config/english_cpu.py learns to judge, in two minutes.
# Data: python prepare/sentiment.py --file=train.tsv --val_file=dev.tsv --tokenizer=out/english_cpu
# Then: python eval.py --ckpt=out/sentiment --tasks=sentiment --file=test.tsv

dataset = "sentiment"
init_from = "out/english_cpu"  # it brings its shape
out_dir = "out/sentiment"
block_size = 64  # a sentence or two of SST-2, whose longest has 52 words; for reviews more
batch_size = 32  # about 60 labels a step
optimizer = "muon"  # AdamW learnt the sentences by heart sooner: 0.73 of dev, Muon 0.75
lr, min_lr = 1e-2, 0.0  # two thirds of the pretraining's rate
lr_schedule = "linear"
momentum = 0.9
