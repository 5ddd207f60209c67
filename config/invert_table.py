# The paper's table on input representation, with controls that it lacks: the scale of the embedding and the optimizer,
# in fresh and in trained models, each with the initialisation of its own architecture. Two more controls, the final
# norm and the other initialisation, for the first seed: the same with --seeds=1 --layers=all,norm --inits=torch,normal.
# First run python prepare.py. The same command resumes it. With --quick=true: 4 min 12 s on two cores of an Intel Xeon.
out_dir = "out/inversion"
models = ["mixer", "gpt", "llama", "hybrid"]
embd_stds = [1.0, 0.02]
train_tokens = 1_000_000
block_size = 64
n_layer = 4
n_embd = 256
n_head = 4
methods = ["gd", "adam"]
lrs = [0.02, 0.2, 2.0]
steps = 200
n_prompts = 3
seeds = 3
show = 0
resume = True
