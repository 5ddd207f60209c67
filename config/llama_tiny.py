# A Llama of the same width, depth and window as mixer_tiny (C 128, L 4, T 128), trained on the same text.
# Two cores of an Intel Xeon, 3.1 M tokens: 169 s of training; validation loss 3.884 (results/architectures.md).
out_dir = "out/{model_type}_tiny"
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
learning_rate = 4e-3  # the best of 2e-3, 4e-3 and 8e-3 (results/architectures.md)
