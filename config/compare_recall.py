# Which architecture looks up values by keys, and how many? 4, 8, 16 and 32 pairs, about 1,056 tokens per step; each at
# the best of three learning rates for 8 pairs (compare_recall_rates.py).
# python prepare.py --dataset=recall_4 --n_pairs=4 --n_keys=36 --n_values=40 --n_documents=300000; likewise 8, 16, 32
out_dir = "out/compare_recall"
base = "config/recall_tiny.py"
variants = {
    "mixer_4": {"model_type": "mixer", "learning_rate": 2e-3,
        "dataset": "recall_4", "block_size": 17, "batch_size": 62},
    "toeplitz_4": {"model_type": "mixer", "toeplitz": True, "learning_rate": 8e-3,
        "dataset": "recall_4", "block_size": 17, "batch_size": 62},
    "gpt_4": {"model_type": "gpt", "learning_rate": 2e-3, "dataset": "recall_4", "block_size": 17, "batch_size": 62},
    "llama_4": {"model_type": "llama", "learning_rate": 2e-3,
        "dataset": "recall_4", "block_size": 17, "batch_size": 62},
    "llama_std_1_4": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 2e-3,
        "dataset": "recall_4", "block_size": 17, "batch_size": 62},
    "llama_short_4": {"model_type": "llama_short", "dataset": "recall_4", "block_size": 17, "batch_size": 62},
    "hybrid_4": {"model_type": "hybrid", "dataset": "recall_4", "block_size": 17, "batch_size": 62},
    "mixer_8": {"model_type": "mixer", "learning_rate": 2e-3,
        "dataset": "recall_8", "block_size": 33, "batch_size": 32},
    "toeplitz_8": {"model_type": "mixer", "toeplitz": True, "learning_rate": 8e-3,
        "dataset": "recall_8", "block_size": 33, "batch_size": 32},
    "gpt_8": {"model_type": "gpt", "learning_rate": 2e-3, "dataset": "recall_8", "block_size": 33, "batch_size": 32},
    "llama_8": {"model_type": "llama", "learning_rate": 2e-3,
        "dataset": "recall_8", "block_size": 33, "batch_size": 32},
    "llama_std_1_8": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 2e-3,
        "dataset": "recall_8", "block_size": 33, "batch_size": 32},
    "llama_short_8": {"model_type": "llama_short", "dataset": "recall_8", "block_size": 33, "batch_size": 32},
    "hybrid_8": {"model_type": "hybrid", "dataset": "recall_8", "block_size": 33, "batch_size": 32},
    "mixer_16": {"model_type": "mixer", "learning_rate": 2e-3,
        "dataset": "recall_16", "block_size": 65, "batch_size": 16},
    "toeplitz_16": {"model_type": "mixer", "toeplitz": True, "learning_rate": 8e-3,
        "dataset": "recall_16", "block_size": 65, "batch_size": 16},
    "gpt_16": {"model_type": "gpt", "learning_rate": 2e-3, "dataset": "recall_16", "block_size": 65, "batch_size": 16},
    "llama_16": {"model_type": "llama", "learning_rate": 2e-3,
        "dataset": "recall_16", "block_size": 65, "batch_size": 16},
    "llama_std_1_16": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 2e-3,
        "dataset": "recall_16", "block_size": 65, "batch_size": 16},
    "llama_short_16": {"model_type": "llama_short", "dataset": "recall_16", "block_size": 65, "batch_size": 16},
    "hybrid_16": {"model_type": "hybrid", "dataset": "recall_16", "block_size": 65, "batch_size": 16},
    "mixer_32": {"model_type": "mixer", "learning_rate": 2e-3,
        "dataset": "recall_32", "block_size": 129, "batch_size": 8},
    "toeplitz_32": {"model_type": "mixer", "toeplitz": True, "learning_rate": 8e-3,
        "dataset": "recall_32", "block_size": 129, "batch_size": 8},
    "gpt_32": {"model_type": "gpt", "learning_rate": 2e-3, "dataset": "recall_32", "block_size": 129, "batch_size": 8},
    "llama_32": {"model_type": "llama", "learning_rate": 2e-3,
        "dataset": "recall_32", "block_size": 129, "batch_size": 8},
    "llama_std_1_32": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 2e-3,
        "dataset": "recall_32", "block_size": 129, "batch_size": 8},
    "llama_short_32": {"model_type": "llama_short", "dataset": "recall_32", "block_size": 129, "batch_size": 8},
    "hybrid_32": {"model_type": "hybrid", "dataset": "recall_32", "block_size": 129, "batch_size": 8},
}
over = "block_size"
budget = "tokens"
amount = 3e6
