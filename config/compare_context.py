# Where do mixer and llama cross? Windows of 32 to 512 tokens, 2048 tokens a step: C 128, L 4. A loss compares
# within a length only. At equal tokens: --budget=tokens --amount=1e6 --out_dir=out/compare_context_tokens
out_dir = "out/compare_context"
base = "config/mixer_tiny.py"
variants = {
    "mixer_32": {"block_size": 32, "batch_size": 64},
    "llama_32": {"block_size": 32, "batch_size": 64, "model_type": "llama", "learning_rate": 4e-3},
    "gpt_32": {"block_size": 32, "batch_size": 64, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_64": {"block_size": 64, "batch_size": 32},
    "llama_64": {"block_size": 64, "batch_size": 32, "model_type": "llama", "learning_rate": 4e-3},
    "gpt_64": {"block_size": 64, "batch_size": 32, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_128": {"block_size": 128, "batch_size": 16},
    "llama_128": {"block_size": 128, "batch_size": 16, "model_type": "llama", "learning_rate": 4e-3},
    "gpt_128": {"block_size": 128, "batch_size": 16, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_256": {"block_size": 256, "batch_size": 8},
    "llama_256": {"block_size": 256, "batch_size": 8, "model_type": "llama", "learning_rate": 4e-3},
    "gpt_256": {"block_size": 256, "batch_size": 8, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_512": {"block_size": 512, "batch_size": 4},
    "llama_512": {"block_size": 512, "batch_size": 4, "model_type": "llama", "learning_rate": 4e-3},
    "gpt_512": {"block_size": 512, "batch_size": 4, "model_type": "gpt", "learning_rate": 4e-3},
}
over = "block_size"
budget = "seconds"
amount = 60
