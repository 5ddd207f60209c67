# A masked mixer small enough for a laptop: C 128, L 4, T 128 on the Python source of this machine.
# Two CPU cores: not yet measured.
out_dir = "out/mixer_tiny"
model_type = "mixer"
dataset = "python"
block_size = 128
n_layer = 4
n_embd = 128
n_head = 4
batch_size = 32
learning_rate = 3e-3
warmup_iters = 100
max_iters = 2000
eval_interval = 250
