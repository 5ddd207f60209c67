# Exercise 4 of LESSON.md: how much of their input do fresh models keep? What changes with the initial standard
# deviation of the embedding? The dataset `python` must be there: train.py has made it in exercise 2.
out_dir = "out/lesson/invert"
models = ["mixer", "llama"]
embd_stds = [1.0, 0.02]
block_size = 32
n_layer = 2
n_embd = 128
n_head = 4
methods = ["gd", "adam"]
lrs = [0.02]
steps = 200
layers = ["each"]
windows = [8, 32]
n_prompts = 3
