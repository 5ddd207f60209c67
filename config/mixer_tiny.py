# A masked mixer for a laptop: C 128, L 4, T 128, on the Python source of this machine.
# Two cores of an Intel Xeon: 60 s of training, 2 min 25 s with installation and all; validation loss 4.036.
out_dir = "out/mixer_tiny"
model_type = "mixer"
dataset = "python"
block_size = 128
n_layer = 4
n_embd = 128
n_head = 4
batch_size = 16
max_iters = 1500
eval_interval = 150
log_interval = 50
warmup_iters = 100
learning_rate = 1.6e-2  # the best of 8e-3, 1.6e-2 and 3.2e-2 for this budget (results/README.md)
