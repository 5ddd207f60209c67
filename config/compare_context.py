# At which window length T do mixer and Llama cross? T is 32 to 512, and each step trains on 2048 tokens: C 128, L 4.
# Both models are also trained with the embd_std that suits them better (compare_ablations.py). Losses can be compared
# at equal T only.
# At equal tokens: --budget=tokens --amount=1e6 --out_dir=out/compare_context_tokens. On another dataset: --dataset=NAME
out_dir = "out/compare_context"
base = "config/mixer_tiny.py"
variants = {
    "mixer_32": {"block_size": 32, "batch_size": 64},
    "mixer_std_tenth_32": {"block_size": 32, "batch_size": 64, "embd_std": 0.1},
    "llama_32": {"block_size": 32, "batch_size": 64, "model_type": "llama", "learning_rate": 4e-3},
    "llama_std_1_32": {"block_size": 32, "batch_size": 64, "model_type": "llama", "learning_rate": 8e-3,
                       "embd_std": 1.0},
    "gpt_32": {"block_size": 32, "batch_size": 64, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_64": {"block_size": 64, "batch_size": 32},
    "mixer_std_tenth_64": {"block_size": 64, "batch_size": 32, "embd_std": 0.1},
    "llama_64": {"block_size": 64, "batch_size": 32, "model_type": "llama", "learning_rate": 4e-3},
    "llama_std_1_64": {"block_size": 64, "batch_size": 32, "model_type": "llama", "learning_rate": 8e-3,
                       "embd_std": 1.0},
    "gpt_64": {"block_size": 64, "batch_size": 32, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_128": {"block_size": 128, "batch_size": 16},
    "mixer_std_tenth_128": {"block_size": 128, "batch_size": 16, "embd_std": 0.1},
    "llama_128": {"block_size": 128, "batch_size": 16, "model_type": "llama", "learning_rate": 4e-3},
    "llama_std_1_128": {"block_size": 128, "batch_size": 16, "model_type": "llama", "learning_rate": 8e-3,
                        "embd_std": 1.0},
    "gpt_128": {"block_size": 128, "batch_size": 16, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_256": {"block_size": 256, "batch_size": 8},
    "mixer_std_tenth_256": {"block_size": 256, "batch_size": 8, "embd_std": 0.1},
    "llama_256": {"block_size": 256, "batch_size": 8, "model_type": "llama", "learning_rate": 4e-3},
    "llama_std_1_256": {"block_size": 256, "batch_size": 8, "model_type": "llama", "learning_rate": 8e-3,
                        "embd_std": 1.0},
    "gpt_256": {"block_size": 256, "batch_size": 8, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_512": {"block_size": 512, "batch_size": 4},
    "mixer_std_tenth_512": {"block_size": 512, "batch_size": 4, "embd_std": 0.1},
    "llama_512": {"block_size": 512, "batch_size": 4, "model_type": "llama", "learning_rate": 4e-3},
    "llama_std_1_512": {"block_size": 512, "batch_size": 4, "model_type": "llama", "learning_rate": 8e-3,
                        "embd_std": 1.0},
    "gpt_512": {"block_size": 512, "batch_size": 4, "model_type": "gpt", "learning_rate": 4e-3},
}
over = "block_size"
budget = "seconds"
amount = 60
