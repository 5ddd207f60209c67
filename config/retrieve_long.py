# More of everything than in retrieve_tiny.py: an hour of training, windows of 128 tokens, and more training pairs
# (comments with the code below them, names of functions without a docstring, later paragraphs of docstrings).
# 2400 iterations take about an hour on two cores. The learning rate rises for 20 iterations, and then falls along a
# cosine to 0 at the last one: with another max_iters it falls faster or slower from the start.
# With 2177 iterations (60 minutes on two cores of an Intel Xeon): 93, 85 and 65 % among 32, 128 and 1024
# (all-MiniLM-L6-v2: 92, 83 and 62 %).
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
max_iters = 2400
max_seconds = 0.0  # no limit, so that the result does not depend on the machine's speed
eval_interval = 100
max_passages = 2000
