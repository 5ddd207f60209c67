# Which learning rate does each architecture need to look up values by keys (config/recall_tiny.py, 8 pairs)? Each
# then uses its best one in compare_recall.py.
out_dir = "out/compare_recall_rates"
base = "config/recall_tiny.py"
variants = {
    "mixer_002": {"model_type": "mixer", "learning_rate": 0.002},
    "mixer_004": {"model_type": "mixer", "learning_rate": 0.004},
    "mixer_008": {"model_type": "mixer", "learning_rate": 0.008},
    "toeplitz_002": {"model_type": "mixer", "toeplitz": True, "learning_rate": 0.002},
    "toeplitz_004": {"model_type": "mixer", "toeplitz": True, "learning_rate": 0.004},
    "toeplitz_008": {"model_type": "mixer", "toeplitz": True, "learning_rate": 0.008},
    "mixer_std_tenth_002": {"model_type": "mixer", "embd_std": 0.1, "learning_rate": 0.002},
    "mixer_std_tenth_004": {"model_type": "mixer", "embd_std": 0.1, "learning_rate": 0.004},
    "mixer_std_tenth_008": {"model_type": "mixer", "embd_std": 0.1, "learning_rate": 0.008},
    "toeplitz_std_tenth_002": {"model_type": "mixer", "toeplitz": True, "embd_std": 0.1, "learning_rate": 0.002},
    "toeplitz_std_tenth_004": {"model_type": "mixer", "toeplitz": True, "embd_std": 0.1, "learning_rate": 0.004},
    "toeplitz_std_tenth_008": {"model_type": "mixer", "toeplitz": True, "embd_std": 0.1, "learning_rate": 0.008},
    "toeplitz_std_tenth_016": {"model_type": "mixer", "toeplitz": True, "embd_std": 0.1, "learning_rate": 0.016},
    "two_heads_002": {"model_type": "mixer", "mixer_heads": 2, "learning_rate": 0.002},
    "two_heads_004": {"model_type": "mixer", "mixer_heads": 2, "learning_rate": 0.004},
    "two_heads_008": {"model_type": "mixer", "mixer_heads": 2, "learning_rate": 0.008},
    "gpt_002": {"model_type": "gpt", "learning_rate": 0.002},
    "gpt_004": {"model_type": "gpt", "learning_rate": 0.004},
    "gpt_008": {"model_type": "gpt", "learning_rate": 0.008},
    "llama_002": {"model_type": "llama", "learning_rate": 0.002},
    "llama_004": {"model_type": "llama", "learning_rate": 0.004},
    "llama_008": {"model_type": "llama", "learning_rate": 0.008},
    "llama_std_1_002": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 0.002},
    "llama_std_1_004": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 0.004},
    "llama_std_1_008": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 0.008},
    "llama_short_002": {"model_type": "llama_short", "learning_rate": 0.002},
    "llama_short_004": {"model_type": "llama_short", "learning_rate": 0.004},
    "llama_short_008": {"model_type": "llama_short", "learning_rate": 0.008},
    "hybrid_002": {"model_type": "hybrid", "learning_rate": 0.002},
    "hybrid_004": {"model_type": "hybrid", "learning_rate": 0.004},
    "hybrid_008": {"model_type": "hybrid", "learning_rate": 0.008},
    "hybrid_parallel_002": {"model_type": "hybrid_parallel", "learning_rate": 0.002},
    "hybrid_parallel_004": {"model_type": "hybrid_parallel", "learning_rate": 0.004},
    "hybrid_parallel_008": {"model_type": "hybrid_parallel", "learning_rate": 0.008},
}
budget = "tokens"
amount = 3e6
