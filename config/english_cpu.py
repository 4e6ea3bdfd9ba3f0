# A small model of English on two CPU cores, for config/finetune_sentiment.py: three minutes.
# Data: any English text in lower case, such as WikiText-2's:
#   cat wikitext2/*.txt | tr A-Z a-z > english.txt
#   python prepare/shakespeare.py --file=english.txt --tokenizer=bpe --vocab_size=8192 --out=english

dataset = "english"
out_dir = "out/english_cpu"
