# A masked mixer that finds Python code by its docstring, trained on the code installed on this machine. Its one block
# has no MLP: so it is a sum of token vectors, weighted by their places, and trains many times as fast as with one
# (results/retrieval.md).
# The learning rate rises for 20 iterations, and then falls along a cosine to 0 at the last one: with another max_iters
# it falls faster or slower from the start.
out_dir = "out/retrieve_tiny"
model_type = "mixer"
pairs = "python_pairs"
dataset = "python"
block_size = 128
n_layer = 1
n_embd = 512
mlp_ratio = 0
batch_size = 512
temperature = 0.03
token_dropout = 0.25
warmup_iters = 20
learning_rate = 5e-2
max_iters = 300
max_seconds = 0.0  # no limit, so that the result does not depend on the machine's speed
eval_interval = 50
max_passages = 2000
