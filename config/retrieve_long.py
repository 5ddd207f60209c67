# The same model as retrieve_tiny.py with five times the time and, to train on, also comments and the code
# below them, names of functions without docstring and their code, and later paragraphs of docstrings.
# Two cores of an Intel Xeon: 25 minutes; 89, 80 and 58 %, at a learning rate that turned out to be low.
out_dir = "out/retrieve_long"
model_type = "mixer"
pairs = "python_more_pairs"
dataset = "python"
block_size = 64
n_layer = 1
n_embd = 512
batch_size = 512
temperature = 0.03
warmup_iters = 20
max_seconds = 1500.0
eval_interval = 200
max_passages = 2000
