# After retrieve_long.py: goes on from its weights with docstrings and their code alone, the pairs that are asked for.
# It takes about a minute (results/retrieval.md).
out_dir = "out/retrieve_finish"
init_from = "out/retrieve_long"
pairs = "python_pairs"
batch_size = 512
temperature = 0.03
token_dropout = 0.25
warmup_iters = 10
learning_rate = 1.5e-2
max_iters = 160
max_seconds = 0.0  # no limit, so that the result does not depend on the machine's speed
eval_interval = 50
max_passages = 2000
