# Do trained mixers get less accurate with their width up to C 512, and stay accurate beyond (paper, section 3)?
# Each width has its own folder: --n_embd=1024 --out_dir=out/inversion_width_1024.
out_dir = "out/inversion_width"
models = ["mixer"]
embd_stds = [1.0]
train_tokens = 250_000
block_size = 64
n_layer = 4
n_embd = 256
n_head = 4
methods = ["gd", "adam"]
lrs = [0.02, 0.2]
steps = 500
n_prompts = 3
show = 0
resume = True
