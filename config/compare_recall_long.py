# Does attention alone learn to look up values, given time and lower learning rates? And a mixer? 8 pairs, as in
# compare_recall_rates.py, with three times the tokens.
out_dir = "out/compare_recall_long"
base = "config/recall_tiny.py"
variants = {
    "llama_0005": {"model_type": "llama", "learning_rate": 0.0005},
    "llama_001": {"model_type": "llama", "learning_rate": 0.001},
    "llama_002": {"model_type": "llama", "learning_rate": 0.002},
    "gpt_001": {"model_type": "gpt", "learning_rate": 0.001},
    "gpt_002": {"model_type": "gpt", "learning_rate": 0.002},
    "mixer_002": {"model_type": "mixer", "learning_rate": 0.002},
    "toeplitz_008": {"model_type": "mixer", "toeplitz": True, "learning_rate": 0.008},
}
budget = "tokens"
amount = 1e7
