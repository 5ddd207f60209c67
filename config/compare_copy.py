# Which architecture copies best, and how long a text? Documents such as hello|hello: the letters behind the bar repeat
# those before it. First make the datasets of 16, 32 and 64 letters: python prepare.py --dataset=copy_16 --n_letters=16
out_dir = "out/compare_copy"
base = "config/recall_tiny.py"
variants = {
    "mixer_16": {"model_type": "mixer", "dataset": "copy_16", "block_size": 33},
    "toeplitz_16": {"model_type": "mixer", "toeplitz": True, "dataset": "copy_16", "block_size": 33},
    "gpt_16": {"model_type": "gpt", "dataset": "copy_16", "block_size": 33},
    "llama_std_1_16": {"model_type": "llama", "embd_std": 1.0, "dataset": "copy_16", "block_size": 33},
    "hybrid_16": {"model_type": "hybrid", "dataset": "copy_16", "block_size": 33},
    "llama_short_16": {"model_type": "llama_short", "dataset": "copy_16", "block_size": 33},
    "mixer_32": {"model_type": "mixer", "dataset": "copy_32", "block_size": 65},
    "toeplitz_32": {"model_type": "mixer", "toeplitz": True, "dataset": "copy_32", "block_size": 65},
    "gpt_32": {"model_type": "gpt", "dataset": "copy_32", "block_size": 65},
    "llama_std_1_32": {"model_type": "llama", "embd_std": 1.0, "dataset": "copy_32", "block_size": 65},
    "hybrid_32": {"model_type": "hybrid", "dataset": "copy_32", "block_size": 65},
    "llama_short_32": {"model_type": "llama_short", "dataset": "copy_32", "block_size": 65},
    "mixer_64": {"model_type": "mixer", "dataset": "copy_64", "block_size": 129},
    "toeplitz_64": {"model_type": "mixer", "toeplitz": True, "dataset": "copy_64", "block_size": 129},
    "gpt_64": {"model_type": "gpt", "dataset": "copy_64", "block_size": 129},
    "llama_std_1_64": {"model_type": "llama", "embd_std": 1.0, "dataset": "copy_64", "block_size": 129},
    "hybrid_64": {"model_type": "hybrid", "dataset": "copy_64", "block_size": 129},
    "llama_short_64": {"model_type": "llama_short", "dataset": "copy_64", "block_size": 129},
}
over = "block_size"
budget = "tokens"
amount = 3e6
