# What fresh models keep of their input: two scales of the embedding times two of the other weights.
# First: python prepare.py. Two CPU cores: minutes not yet measured.
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
