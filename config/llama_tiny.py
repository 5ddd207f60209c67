# A Llama of the size of mixer_tiny: C 128, L 4, T 128, on the Python source of this machine.
# Two cores of an Intel Xeon: 196 s, 169 s of it training; validation loss 3.884.
out_dir = "out/llama_tiny"
model_type = "llama"
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
learning_rate = 4e-3  # the best of 2e-3, 4e-3 and 8e-3 (results/README.md)
