# How much of their input do fresh models keep? Two scales of the embedding, times two of the other weights.
# First run python prepare.py. The time on two CPU cores is not yet measured.
out_dir = "out/invert_untrained"
models = ["mixer", "gpt", "llama", "hybrid"]
embd_stds = [1.0, 0.02]
inits = ["torch", "normal"]
block_size = 64
n_layer = 8
n_embd = 256
n_head = 4
steps = 200
n_prompts = 4
