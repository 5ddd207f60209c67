# How does the order of the architectures change with the window length T? Each step trains on 2048 tokens; C 128, L 4.
# Each model has the embedding that suits it better (compare_ablations.py), and the Toeplitz mixer also std 1; learning
# rates were tuned at T 64, 128 and 512 of TinyStories (results/architectures.md). "fast", "slow" and "slower" are other
# rates, for the text python. Losses can be compared at equal T only.
# One document per window: --windows=document. Another text: --dataset=NAME. Equal time: --budget=seconds --amount=40.
out_dir = "out/compare_context"
base = "config/mixer_tiny.py"
variants = {
    "mixer_std_tenth_32": {"block_size": 32, "batch_size": 64, "embd_std": 0.1},
    "mixer_std_tenth_fast_32": {"block_size": 32, "batch_size": 64, "embd_std": 0.1, "learning_rate": 3.2e-2},
    "toeplitz_32": {"block_size": 32, "batch_size": 64, "toeplitz": True},
    "toeplitz_std_tenth_32": {"block_size": 32, "batch_size": 64, "toeplitz": True, "embd_std": 0.1},
    "llama_std_1_32": {"block_size": 32, "batch_size": 64, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 8e-3},
    "hybrid_32": {"block_size": 32, "batch_size": 64, "model_type": "hybrid", "learning_rate": 8e-3},
    "gpt_32": {"block_size": 32, "batch_size": 64, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_std_tenth_64": {"block_size": 64, "batch_size": 32, "embd_std": 0.1},
    "mixer_std_tenth_fast_64": {"block_size": 64, "batch_size": 32, "embd_std": 0.1, "learning_rate": 3.2e-2},
    "toeplitz_64": {"block_size": 64, "batch_size": 32, "toeplitz": True},
    "toeplitz_std_tenth_64": {"block_size": 64, "batch_size": 32, "toeplitz": True, "embd_std": 0.1},
    "llama_std_1_64": {"block_size": 64, "batch_size": 32, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 8e-3},
    "hybrid_64": {"block_size": 64, "batch_size": 32, "model_type": "hybrid", "learning_rate": 8e-3},
    "gpt_64": {"block_size": 64, "batch_size": 32, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_std_tenth_128": {"block_size": 128, "batch_size": 16, "embd_std": 0.1},
    "mixer_std_tenth_fast_128": {"block_size": 128, "batch_size": 16, "embd_std": 0.1, "learning_rate": 3.2e-2},
    "toeplitz_128": {"block_size": 128, "batch_size": 16, "toeplitz": True},
    "toeplitz_std_tenth_128": {"block_size": 128, "batch_size": 16, "toeplitz": True, "embd_std": 0.1},
    "llama_std_1_128": {"block_size": 128, "batch_size": 16, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 8e-3},
    "hybrid_128": {"block_size": 128, "batch_size": 16, "model_type": "hybrid", "learning_rate": 8e-3},
    "gpt_128": {"block_size": 128, "batch_size": 16, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_std_tenth_256": {"block_size": 256, "batch_size": 8, "embd_std": 0.1},
    "toeplitz_256": {"block_size": 256, "batch_size": 8, "toeplitz": True},
    "toeplitz_std_tenth_256": {"block_size": 256, "batch_size": 8, "toeplitz": True, "embd_std": 0.1},
    "llama_std_1_256": {"block_size": 256, "batch_size": 8, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 8e-3},
    "llama_std_1_slow_256": {"block_size": 256, "batch_size": 8, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 4e-3},
    "hybrid_256": {"block_size": 256, "batch_size": 8, "model_type": "hybrid", "learning_rate": 8e-3},
    "gpt_256": {"block_size": 256, "batch_size": 8, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_std_tenth_512": {"block_size": 512, "batch_size": 4, "embd_std": 0.1},
    "toeplitz_512": {"block_size": 512, "batch_size": 4, "toeplitz": True},
    "toeplitz_std_tenth_512": {"block_size": 512, "batch_size": 4, "toeplitz": True, "embd_std": 0.1},
    "llama_std_1_512": {"block_size": 512, "batch_size": 4, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 8e-3},
    "llama_std_1_slow_512": {"block_size": 512, "batch_size": 4, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 4e-3},
    "hybrid_512": {"block_size": 512, "batch_size": 4, "model_type": "hybrid", "learning_rate": 8e-3},
    "gpt_512": {"block_size": 512, "batch_size": 4, "model_type": "gpt", "learning_rate": 4e-3},
    "mixer_std_tenth_1024": {"block_size": 1024, "batch_size": 2, "embd_std": 0.1},
    "toeplitz_1024": {"block_size": 1024, "batch_size": 2, "toeplitz": True},
    "toeplitz_std_tenth_1024": {"block_size": 1024, "batch_size": 2, "toeplitz": True, "embd_std": 0.1},
    "llama_std_1_1024": {"block_size": 1024, "batch_size": 2, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 8e-3},
    "llama_std_1_slow_1024": {"block_size": 1024, "batch_size": 2, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 4e-3},
    "llama_std_1_slower_1024": {"block_size": 1024, "batch_size": 2, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 2e-3},
    "hybrid_1024": {"block_size": 1024, "batch_size": 2, "model_type": "hybrid", "learning_rate": 8e-3},
    "gpt_1024": {"block_size": 1024, "batch_size": 2, "model_type": "gpt", "learning_rate": 4e-3},
}
eval_interval = 1000  # before and after each run only: evaluations in long windows take as long as training
over = "block_size"
budget = "tokens"
amount = 1e6
