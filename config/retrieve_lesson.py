# Exercise 5 of LESSON.md: a short training on docstrings and code, with half the width of retrieve_tiny.py, and not
# compiled.
out_dir = "out/lesson/search/mixer"
model_type = "mixer"
pairs = "python_pairs"
dataset = "python"
block_size = 64
n_layer = 1
n_embd = 256
batch_size = 512
temperature = 0.03
token_dropout = 0.15
warmup_iters = 20
learning_rate = 1.6e-2
max_iters = 80
max_seconds = 0.0
log_interval = 20
sizes = [32, 64, 128, 256, 512, 1024, 2048]
max_passages = 2000
compile = False
