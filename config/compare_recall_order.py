# Which part of a hybrid looks values up? The hybrid of the paper mixes by attention first and by the masked mixer
# second; here also the other way round, and with a convolution over two tokens instead of the mixer. The last two are
# Llamas without any convolution, one with the hybrid's initial weights.
out_dir = "out/compare_recall_order"
base = "config/recall_tiny.py"
variants = {
    "hybrid": {"model_type": "hybrid"},
    "mixer_first": {"model_type": "mixer_first"},
    "llama_short": {"model_type": "llama_short"},
    "llama_torch_1": {"model_type": "llama", "embd_std": 1.0, "init": "torch"},
    "llama_std_1": {"model_type": "llama", "embd_std": 1.0},
    "mixer": {"model_type": "mixer"},
}
budget = "tokens"
amount = 3e6
n_seeds = 3
