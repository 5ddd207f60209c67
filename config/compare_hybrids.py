# Hybrids and their parents, each at its own learning rate. The parents are also trained with another embd_std.
# At equal FLOPs: --budget=flops --amount=1e13 --out_dir=out/compare_hybrids_flops
out_dir = "out/compare_hybrids"
base = "config/mixer_tiny.py"
variants = {
    "mixer": {},
    "mixer_std_tenth": {"embd_std": 0.1},
    "llama": {"model_type": "llama", "learning_rate": 4e-3},
    "llama_std_1": {"model_type": "llama", "learning_rate": 8e-3, "embd_std": 1.0},
    "hybrid": {"model_type": "hybrid", "learning_rate": 8e-3},
    "hybrid_parallel": {"model_type": "hybrid_parallel", "learning_rate": 8e-3},
}
budget = "seconds"
amount = 60
n_seeds = 3
