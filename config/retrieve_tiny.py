# A masked mixer that finds Python code by its docstring, trained on the code installed on this machine. It has one wide
# block, because deeper models see fewer pairs in the same time (results/retrieval.md).
# 200 iterations take about five minutes on two cores. The learning rate rises for 20 iterations, and then falls along a
# cosine to 0 at the last one: with another max_iters it falls faster or slower from the start.
# With 321 iterations (5 minutes on two cores of an Intel Xeon) the right passage comes first among 32, 128 and 1024 for
# 90, 81 and 59 % of the queries (BM25: 65, 55 and 34 %).
out_dir = "out/retrieve_tiny"
model_type = "mixer"
pairs = "python_pairs"
dataset = "python"
block_size = 64
n_layer = 1
n_embd = 512
batch_size = 512
temperature = 0.03
token_dropout = 0.15  # gains 1 to 2 points over 0; 0.3 is worse
warmup_iters = 20
learning_rate = 1.6e-2  # the best of 2e-3 to 3.2e-2 after 60 s (results/retrieval.md)
max_iters = 200
max_seconds = 0.0  # no limit, so that the result does not depend on the machine's speed
eval_interval = 50
max_passages = 2000
