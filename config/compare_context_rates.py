# The learning rates of compare_context.py at T 64 and 512, and, at T 128, further embeddings and rates.
# python prepare.py --input=tinystories.txt --dataset=tinystories
out_dir = "out/compare_context_rates"
base = "config/mixer_tiny.py"
dataset = "tinystories"
variants = {
    "mixer_std_tenth_008_512": {"block_size": 512, "batch_size": 4, "embd_std": 0.1, "learning_rate": 8e-3},
    "mixer_std_tenth_016_512": {"block_size": 512, "batch_size": 4, "embd_std": 0.1},
    "mixer_std_tenth_032_512": {"block_size": 512, "batch_size": 4, "embd_std": 0.1, "learning_rate": 3.2e-2},
    "toeplitz_008_512": {"block_size": 512, "batch_size": 4, "toeplitz": True, "learning_rate": 8e-3},
    "toeplitz_016_512": {"block_size": 512, "batch_size": 4, "toeplitz": True},
    "toeplitz_032_512": {"block_size": 512, "batch_size": 4, "toeplitz": True, "learning_rate": 3.2e-2},
    "llama_std_1_004_512": {"block_size": 512, "batch_size": 4, "model_type": "llama",
        "learning_rate": 4e-3, "embd_std": 1.0},
    "llama_std_1_008_512": {"block_size": 512, "batch_size": 4, "model_type": "llama",
        "learning_rate": 8e-3, "embd_std": 1.0},
    "llama_std_1_016_512": {"block_size": 512, "batch_size": 4, "model_type": "llama",
        "learning_rate": 1.6e-2, "embd_std": 1.0},
    "mixer_std_tenth_008_64": {"block_size": 64, "batch_size": 32, "embd_std": 0.1, "learning_rate": 8e-3},
    "mixer_std_tenth_016_64": {"block_size": 64, "batch_size": 32, "embd_std": 0.1},
    "mixer_std_tenth_032_64": {"block_size": 64, "batch_size": 32, "embd_std": 0.1, "learning_rate": 3.2e-2},
    "toeplitz_008_64": {"block_size": 64, "batch_size": 32, "toeplitz": True, "learning_rate": 8e-3},
    "toeplitz_016_64": {"block_size": 64, "batch_size": 32, "toeplitz": True},
    "toeplitz_032_64": {"block_size": 64, "batch_size": 32, "toeplitz": True, "learning_rate": 3.2e-2},
    "llama_std_1_004_64": {"block_size": 64, "batch_size": 32, "model_type": "llama",
        "learning_rate": 4e-3, "embd_std": 1.0},
    "llama_std_1_008_64": {"block_size": 64, "batch_size": 32, "model_type": "llama",
        "learning_rate": 8e-3, "embd_std": 1.0},
    "llama_std_1_016_64": {"block_size": 64, "batch_size": 32, "model_type": "llama",
        "learning_rate": 1.6e-2, "embd_std": 1.0},
    "toeplitz_std_tenth_008_128": {"toeplitz": True, "embd_std": 0.1, "learning_rate": 8e-3},
    "toeplitz_std_tenth_032_128": {"toeplitz": True, "embd_std": 0.1, "learning_rate": 3.2e-2},
    "hybrid_std_tenth_008_128": {"model_type": "hybrid", "learning_rate": 8e-3, "embd_std": 0.1},
    "llama_std_tenth_008_128": {"model_type": "llama", "learning_rate": 8e-3, "embd_std": 0.1},
}
eval_interval = 1000  # only before and after each run: in long windows, five evaluations take as long as training
over = "block_size"
budget = "tokens"
amount = 1e6
