"""What eval.py measures: the problems (*.jsonl), and the sandbox."""
