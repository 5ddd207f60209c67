# The paper's sequential hybrid on TinyStories: C 512, L 8, T 512 (paper, section 4).
# First run: python prepare.py --dataset=tinystories
# The paper trained for 12 hours on one RTX 3060 (12 GB). Time and loss of this code on a GPU are not yet measured.
out_dir = "out/{model_type}_tinystories"
model_type = "hybrid"
dataset = "tinystories"
block_size = 512
n_layer = 8
n_embd = 512
n_head = 4
batch_size = 32
max_iters = 200_000
eval_interval = 2000
log_interval = 50
learning_rate = 5e-4
schedule = "linear"
warmup_iters = 500
weight_decay = 0.0  # the author's trainer has this value and the next
beta2 = 0.999
