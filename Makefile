PYTHON ?= python3
TORCH ?= torch==2.13.0  # the version that the tests run with; requirements.txt takes any from 2.9 on
RUN = .venv/bin/python

.PHONY: quickstart test torture notebooks lint install clean

quickstart: install  ## from nothing to completions of real Python: 6 to 8 minutes on 2 cores, no GPU
	$(RUN) prepare/python.py --max_mb=100 --vocab_size=4096 --val_fraction=0.02 --max_share=0.05 --max_kb=100 --tests=False --fim_rate=0.2 --fim_context=512
	$(RUN) train.py config/python_cpu.py
	$(RUN) sample.py --ckpt=out/python_cpu --prompt="def fibonacci(n):" --max_new_tokens=100
	printf 'class Stack:\n    def push(self, item):' | $(RUN) sample.py --ckpt=out/python_cpu --prompt=- --max_new_tokens=100
	$(RUN) eval.py --ckpt=out/python_cpu --tasks=bodies

test: .venv/test lint  ## every test; NANONEOX_DATA=FOLDER adds those on tinyshakespeare.txt and HumanEval.jsonl.gz
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto tests  # one process for each core

torture: .venv/test  ## hundreds of kills, signals, damaged files and hostile programs: about an hour
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto -o python_files='*.py' tests/torture

notebooks: .venv/test  ## executes both notebooks and keeps what they print and draw: about five minutes
	.venv/bin/jupyter execute --inplace --NotebookClient.coalesce_streams=True notebooks/*.ipynb

lint: .venv/test
	.venv/bin/ruff format --check -q .
	.venv/bin/ruff check -q .

install: .venv/run

.venv/run: requirements.txt
	@echo "installing torch and the rest into .venv, in silence; a few minutes, most of them the download"
	@$(PYTHON) -m venv .venv
	@$(RUN) -m pip install -q $(TORCH) -r requirements.txt
	@touch $@
	@echo "installed; in a shell of your own: source .venv/bin/activate"

.venv/test: requirements-test.txt requirements-track.txt .venv/run
	$(RUN) -m pip install -q -r requirements-test.txt
	@touch $@

clean:  ## remove what was made here: the environment, the data, the runs and what trackers keep of them
	rm -rf .venv data out mlflow.db mlruns wandb
