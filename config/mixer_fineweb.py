# The paper's masked mixer on 10 B tokens of FineWeb-edu: C 1024, L 16, T 512, V 8000 (the paper, section 4).
# First: python prepare.py --dataset=fineweb_edu --vocab_size=8000
# torchrun --nproc_per_node=4 train.py config/mixer_fineweb.py
# Four GPUs: hours and loss not yet measured.
out_dir = "out/mixer_fineweb"
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
weight_decay = 0.01
