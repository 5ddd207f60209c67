# A masked mixer that finds Python code by its docstring, trained on the code of this machine.
# Two cores of an Intel Xeon: not yet measured.
out_dir = "out/retrieve_tiny"
model_type = "mixer"
pairs = "python_pairs"
dataset = "python"
block_size = 128
n_layer = 4
n_embd = 256
batch_size = 128
max_seconds = 600.0
max_passages = 2000
