# Bidirectional prediction: a token is predicted from all others by two streams, which meet before the head (paper,
# section 2). The causal models stand beside it, all with an embedding of std 1.
out_dir = "out/compare_bidirectional"
base = "config/mixer_tiny.py"
variants = {
    "mixer": {"objective": "bidirectional"},
    "llama_std_1": {"objective": "bidirectional", "model_type": "llama", "learning_rate": 8e-3, "embd_std": 1.0},
    "mixer_causal": {},
    "llama_std_1_causal": {"model_type": "llama", "learning_rate": 8e-3, "embd_std": 1.0},
}
budget = "tokens"
amount = 1e6
n_seeds = 3
