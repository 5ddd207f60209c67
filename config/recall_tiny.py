# Look up values by keys: documents such as aQbXcZ|bXaQcZ, whose second half repeats the pairs in another order. Make
# them first: python prepare.py --dataset=recall. Watch the column recall_accuracy of log.csv (results/recall.md).
out_dir = "out/{model_type}_recall"
model_type = "hybrid"
dataset = "recall"
windows = "document"
block_size = 33      # a document of 8 pairs has 33 characters
n_layer = 2
n_embd = 64
n_head = 2
batch_size = 64
max_iters = 4000
eval_interval = 200
eval_iters = 16
log_interval = 100
warmup_iters = 100
learning_rate = 4e-3
sample_tokens = 0
