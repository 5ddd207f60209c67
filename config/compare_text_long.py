# When does a model begin to look things up on real text? Six times the tokens of compare_context.py: curves.csv has the
# loss on recallable and on other tokens over training.
out_dir = "out/compare_text_long"
base = "config/mixer_tiny.py"
variants = {
    "mixer_std_tenth": {"embd_std": 0.1},
    "toeplitz_std_tenth": {"embd_std": 0.1, "toeplitz": True},
    "llama_std_1": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 8e-3},
    "toeplitz_std_tenth_slow": {"embd_std": 0.1, "toeplitz": True, "learning_rate": 8e-3},
    "llama_std_1_slow": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 4e-3},
    "hybrid": {"model_type": "hybrid", "learning_rate": 8e-3},
}
budget = "tokens"
amount = 6e6
