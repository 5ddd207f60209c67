# A masked mixer for a laptop (C 128, L 4, T 128), trained on the Python source code installed on this machine.
# Two cores of an Intel Xeon, 3.1 M tokens: 60 s of training; validation loss 4.036 (results/architectures.md).
out_dir = "out/{model_type}_tiny"
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
learning_rate = 1.6e-2  # the best of 8e-3, 1.6e-2 and 3.2e-2 for this budget (results/architectures.md)
