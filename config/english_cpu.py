# A small model of English on two CPU cores, for config/finetune_sentiment.py to begin with.
# Data: English text in lower case, as SST-2 is. WikiText-2, and SST-2's sentences without labels:
#       (cut -f1 sst2/train.tsv; cat wikitext2/*.txt) | tr A-Z a-z > english.txt
#       python prepare/shakespeare.py --file=english.txt --tokenizer=bpe --vocab_size=8192 \
#           --out=english

dataset = "english"
out_dir = "out/english_cpu"
n_layer, n_head, n_embd = 2, 4, 128  # 1.4M parameters; what a word means is in the table, 1.0M
block_size = 256  # the longest review that it can read later
batch_size = 16  # 4,096 tokens a step
optimizer = "muon"  # this and the next five as in config/python_cpu.py
lr, min_lr = 1.5e-2, 0.0
lr_schedule = "linear"
momentum = 0.85
rotary_pct = 1.0
tie_embeddings = True
dropout = 0.1  # half a million tokens are read several times
warmup_iters = 10
max_iters = 100_000  # never reached:
max_minutes = 3.0  # the clock ends the run
eval_interval = 100
eval_iters = 10
sample_prompt = "the film was"
sample_tokens = 30
