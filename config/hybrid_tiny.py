# A hybrid of Llama and masked mixer, as wide, as deep and with the same window as mixer_tiny (C 128, L 4, T 128).
# Two cores of an Intel Xeon, 3.1 M tokens: 175 s of training; validation loss 3.846 (results/architectures.md).
out_dir = "out/{model_type}_tiny"
model_type = "hybrid"
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
learning_rate = 8e-3  # the best of 2e-3, 4e-3, 8e-3 and 1.6e-2 (results/architectures.md)
