# A masked mixer that finds Python code by its docstring, trained on the code of this machine: one wide block,
# as deeper models see fewer pairs in the time (results/README.md).
# Two cores of an Intel Xeon: 5 minutes; among 32, 128, 1024 passages the right one comes first for 90, 81 and
# 59 % of the queries (BM25: 65, 55, 34).
out_dir = "out/retrieve_tiny"
model_type = "mixer"
pairs = "python_pairs"
dataset = "python"
block_size = 64
n_layer = 1
n_embd = 512
batch_size = 512
temperature = 0.03
token_dropout = 0.15  # 1 to 2 points more among all numbers of passages than none, and 0.3 is worse
warmup_iters = 20
learning_rate = 1.6e-2  # the best of 2e-3 to 3.2e-2 after 60 s (results/README.md)
max_seconds = 300.0
eval_interval = 50
max_passages = 2000
