# Mixer, hybrid, Llama and GPT at equal time, each at its own learning rate: C 128, L 4, T 128. Mixer and Llama are also
# trained with the embd_std that suits them better (compare_ablations.py).
# Two cores of an Intel Xeon: 15 min 22 s; three seeds on two cores of an AMD EPYC: 43 min.
out_dir = "out/compare_tiny"
base = "config/mixer_tiny.py"
variants = {
    "mixer": {"learning_rate": 8e-3},
    "mixer_std_tenth": {"learning_rate": 8e-3, "embd_std": 0.1},
    "hybrid": {"model_type": "hybrid", "learning_rate": 8e-3},
    "llama": {"model_type": "llama", "learning_rate": 4e-3},
    "llama_std_1": {"model_type": "llama", "learning_rate": 8e-3, "embd_std": 1.0},
    "gpt": {"model_type": "gpt", "learning_rate": 4e-3},
}
budget = "seconds"
amount = 120
