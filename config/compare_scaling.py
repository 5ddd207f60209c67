# How does the best loss fall with the FLOPs of training? Three models, each with four widths: at every budget the best
# width counts (results/power_law.py). Each model has the embedding that suits it better (compare_ablations.py) and each
# width the best of three learning rates at 3e12 FLOPs (results/compare/scaling_rates.csv).
# For each budget: --amount=1e12 --out_dir=out/compare_scaling_1e12; likewise 3e12 and 1e13.
out_dir = "out/compare_scaling"
base = "config/mixer_tiny.py"
variants = {
    "mixer_16": {"n_embd": 16, "embd_std": 0.1, "learning_rate": 1.6e-2},
    "mixer_32": {"n_embd": 32, "embd_std": 0.1, "learning_rate": 1.6e-2},
    "mixer_64": {"n_embd": 64, "embd_std": 0.1, "learning_rate": 3.2e-2},
    "mixer_128": {"n_embd": 128, "embd_std": 0.1, "learning_rate": 3.2e-2},
    "toeplitz_16": {"n_embd": 16, "toeplitz": True, "embd_std": 0.1, "learning_rate": 1.6e-2},
    "toeplitz_32": {"n_embd": 32, "toeplitz": True, "embd_std": 0.1, "learning_rate": 3.2e-2},
    "toeplitz_64": {"n_embd": 64, "toeplitz": True, "embd_std": 0.1, "learning_rate": 3.2e-2},
    "toeplitz_128": {"n_embd": 128, "toeplitz": True, "embd_std": 0.1, "learning_rate": 1.6e-2},
    "llama_16": {"n_embd": 16, "model_type": "llama", "embd_std": 1.0, "learning_rate": 3.2e-2},
    "llama_32": {"n_embd": 32, "model_type": "llama", "embd_std": 1.0, "learning_rate": 3.2e-2},
    "llama_64": {"n_embd": 64, "model_type": "llama", "embd_std": 1.0, "learning_rate": 8e-3},
    "llama_128": {"n_embd": 128, "model_type": "llama", "embd_std": 1.0, "learning_rate": 8e-3},
}
eval_interval = 1000  # seldom, because only the last evaluation counts
over = "parameters"
budget = "flops"
amount = 1e13
