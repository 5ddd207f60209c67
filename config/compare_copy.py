# Which architecture copies best, and how long a text? Documents such as hello|hello: the letters behind the bar repeat
# those before it. This config trains on 16 and on 64 letters, compare_copy_rates.py on 32 at three learning rates.
# python prepare.py --dataset=copy_16 --n_letters=16; likewise copy_64
out_dir = "out/compare_copy"
base = "config/recall_tiny.py"
variants = {
    "mixer_16": {"model_type": "mixer", "learning_rate": 2e-3,
        "dataset": "copy_16", "block_size": 33, "batch_size": 32},
    "toeplitz_16": {"model_type": "mixer", "toeplitz": True, "learning_rate": 2e-3,
        "dataset": "copy_16", "block_size": 33, "batch_size": 32},
    "two_heads_16": {"model_type": "mixer", "mixer_heads": 2, "learning_rate": 2e-3,
        "dataset": "copy_16", "block_size": 33, "batch_size": 32},
    "gpt_16": {"model_type": "gpt", "learning_rate": 2e-3,
        "dataset": "copy_16", "block_size": 33, "batch_size": 32},
    "llama_16": {"model_type": "llama", "learning_rate": 2e-3,
        "dataset": "copy_16", "block_size": 33, "batch_size": 32},
    "llama_std_1_16": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 2e-3,
        "dataset": "copy_16", "block_size": 33, "batch_size": 32},
    "hybrid_16": {"model_type": "hybrid", "learning_rate": 2e-3,
        "dataset": "copy_16", "block_size": 33, "batch_size": 32},
    "hybrid_parallel_16": {"model_type": "hybrid_parallel", "learning_rate": 2e-3,
        "dataset": "copy_16", "block_size": 33, "batch_size": 32},
    "llama_short_16": {"model_type": "llama_short", "learning_rate": 2e-3,
        "dataset": "copy_16", "block_size": 33, "batch_size": 32},
    "mixer_64": {"model_type": "mixer", "learning_rate": 2e-3,
        "dataset": "copy_64", "block_size": 129, "batch_size": 8},
    "toeplitz_64": {"model_type": "mixer", "toeplitz": True, "learning_rate": 2e-3,
        "dataset": "copy_64", "block_size": 129, "batch_size": 8},
    "two_heads_64": {"model_type": "mixer", "mixer_heads": 2, "learning_rate": 2e-3,
        "dataset": "copy_64", "block_size": 129, "batch_size": 8},
    "gpt_64": {"model_type": "gpt", "learning_rate": 2e-3,
        "dataset": "copy_64", "block_size": 129, "batch_size": 8},
    "llama_64": {"model_type": "llama", "learning_rate": 2e-3,
        "dataset": "copy_64", "block_size": 129, "batch_size": 8},
    "llama_std_1_64": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 2e-3,
        "dataset": "copy_64", "block_size": 129, "batch_size": 8},
    "hybrid_64": {"model_type": "hybrid", "learning_rate": 2e-3,
        "dataset": "copy_64", "block_size": 129, "batch_size": 8},
    "hybrid_parallel_64": {"model_type": "hybrid_parallel", "learning_rate": 2e-3,
        "dataset": "copy_64", "block_size": 129, "batch_size": 8},
    "llama_short_64": {"model_type": "llama_short", "learning_rate": 2e-3,
        "dataset": "copy_64", "block_size": 129, "batch_size": 8},
}
over = "block_size"
budget = "tokens"
amount = 3e6
