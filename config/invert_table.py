# The paper's section on input representation, with the controls it lacks: scale of the embedding, scale of
# the other weights, final norm and optimizer, in fresh and in trained models. The same command resumes it.
# First: python prepare.py. Two cores of an Intel Xeon: about 80 minutes without the hybrid's second init, in
# parts; --quick=true: 4 min 12 s.
out_dir = "out/inversion"
models = ["mixer", "gpt", "llama", "hybrid"]
embd_stds = [1.0, 0.02]
inits = ["torch", "normal"]  # trained with the other init than its own: the first seed only
train_tokens = 1_000_000
block_size = 64
n_layer = 4
n_embd = 256
n_head = 4
methods = ["gd", "adam"]
lrs = [0.02, 0.2, 2.0]
steps = 200
layers = ["all", "norm"]
n_prompts = 3
seeds = 3
show = 0
resume = True
