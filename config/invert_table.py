# The paper's table on input representation, with controls that it lacks: the scale of the embedding, the scale of the
# other weights, the final norm and the optimizer, in fresh and in trained models. The same command resumes it.
# First run python prepare.py. Two cores of an Intel Xeon: about 80 minutes in parts, without the hybrid's second init;
# with --quick=true: 4 min 12 s.
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
