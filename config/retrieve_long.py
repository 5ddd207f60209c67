# More of everything than in retrieve_tiny.py: an hour of training, windows of 128 tokens, and more training pairs
# (comments with the code below them, names of functions without a docstring, later paragraphs of docstrings).
# Two cores of an Intel Xeon, 60 minutes: 93, 85 and 65 % among 32, 128 and 1024 (all-MiniLM-L6-v2: 92, 83 and 62 %).
out_dir = "out/retrieve_long"
model_type = "mixer"
pairs = "python_more_pairs"
dataset = "python"
block_size = 128
n_layer = 1
n_embd = 512
batch_size = 512
temperature = 0.03
token_dropout = 0.15
warmup_iters = 20
learning_rate = 1.6e-2
max_seconds = 3600.0
eval_interval = 100
max_passages = 2000
