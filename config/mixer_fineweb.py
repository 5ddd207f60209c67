# The paper's masked mixer on 10 billion tokens of FineWeb-edu: C 1024, L 16, T 512, V 8000 (paper, section 4).
# First run: python prepare.py --dataset=fineweb_edu --vocab_size=8000
# Then: torchrun --nproc_per_node=4 train.py config/mixer_fineweb.py
# Time and loss on four GPUs are not yet measured.
out_dir = "out/{model_type}_fineweb"
model_type = "mixer"
dataset = "fineweb_edu"
block_size = 512
n_layer = 16
n_embd = 1024
batch_size = 32
gradient_accumulation_steps = 4  # over all processes: 128 windows an iteration
max_iters = 200_000
eval_interval = 2000
log_interval = 50
learning_rate = 5e-4
schedule = "linear"
warmup_iters = 500
weight_decay = 0.0  # the author's trainer has this value and the next
beta2 = 0.999
