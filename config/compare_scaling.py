# How does the loss fall with the number of parameters at equal training FLOPs? Mixer and Llama have four widths each;
# over.png shows the result. Both use the embd_std that suits them better (compare_ablations.py), the mixer also the
# paper's.
out_dir = "out/compare_scaling"
base = "config/mixer_tiny.py"
variants = {
    "mixer_32": {"n_embd": 32},
    "mixer_64": {"n_embd": 64},
    "mixer_128": {"n_embd": 128},
    "mixer_256": {"n_embd": 256, "learning_rate": 8e-3},
    "mixer_std_tenth_32": {"n_embd": 32, "embd_std": 0.1},
    "mixer_std_tenth_64": {"n_embd": 64, "embd_std": 0.1},
    "mixer_std_tenth_128": {"n_embd": 128, "embd_std": 0.1},
    "mixer_std_tenth_256": {"n_embd": 256, "embd_std": 0.1, "learning_rate": 8e-3},
    "llama_32": {"n_embd": 32, "model_type": "llama", "embd_std": 1.0, "learning_rate": 1.6e-2},
    "llama_64": {"n_embd": 64, "model_type": "llama", "embd_std": 1.0, "learning_rate": 8e-3},
    "llama_128": {"n_embd": 128, "model_type": "llama", "embd_std": 1.0, "learning_rate": 8e-3},
    "llama_256": {"n_embd": 256, "model_type": "llama", "embd_std": 1.0, "learning_rate": 4e-3},
}
over = "parameters"
budget = "flops"
amount = 1e13
