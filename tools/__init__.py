"""Commands that one needs now and then, and peers.py, which bench.py compares us with."""
