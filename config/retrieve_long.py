# More of everything than in retrieve_tiny.py: twice the width, windows of 256 tokens, 600 iterations, and more
# training pairs (comments with the code below them, names of functions without a docstring, later paragraphs of
# docstrings).
out_dir = "out/retrieve_long"
model_type = "mixer"
pairs = "python_more_pairs"
dataset = "python"
block_size = 256
n_layer = 1
n_embd = 1024
mlp_ratio = 0
batch_size = 512
temperature = 0.03
token_dropout = 0.25
warmup_iters = 20
learning_rate = 5e-2
max_iters = 600
max_seconds = 0.0  # no limit, so that the result does not depend on the machine's speed
eval_interval = 100
max_passages = 2000
