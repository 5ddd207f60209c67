# How many attention heads does a Llama need? It has 1 to 16, with the paper's embd_std and with the one that suits it.
out_dir = "out/compare_heads"
base = "config/llama_tiny.py"
variants = {
    "heads_1": {"n_head": 1},
    "heads_2": {"n_head": 2},
    "heads_4": {"n_head": 4},
    "heads_8": {"n_head": 8},
    "heads_16": {"n_head": 16},
    "std_1_heads_1": {"n_head": 1, "embd_std": 1.0, "learning_rate": 8e-3},
    "std_1_heads_2": {"n_head": 2, "embd_std": 1.0, "learning_rate": 8e-3},
    "std_1_heads_4": {"n_head": 4, "embd_std": 1.0, "learning_rate": 8e-3},
    "std_1_heads_8": {"n_head": 8, "embd_std": 1.0, "learning_rate": 8e-3},
    "std_1_heads_16": {"n_head": 16, "embd_std": 1.0, "learning_rate": 8e-3},
}
eval_interval = 1000  # only before and after each run
over = "n_head"
budget = "tokens"
amount = 1e6
