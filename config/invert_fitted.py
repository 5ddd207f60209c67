# Is the gap between a trained mixer and a trained Llama (config/invert_table.py) one of the method? The paper's 500
# steps instead of 200, and three step sizes of Adam, so that each model can have the one that suits it: chosen on the
# first two prompts, reported on the other two.
out_dir = "out/inversion_fitted"
models = ["mixer", "llama"]
embd_stds = [0.02]
train_tokens = 1_000_000
block_size = 64
n_layer = 4
n_embd = 256
n_head = 4
methods = ["gd", "adam"]
lrs = [0.02]
adam_lrs = [0.03, 0.1, 0.3]
steps = 500
n_prompts = 4
seeds = 3
show = 0
resume = True
