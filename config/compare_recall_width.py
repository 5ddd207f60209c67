# Does a mixer need more width to look up more pairs, as Zoology (arXiv 2312.04927) says of fixed convolutions?
# recall_4 and recall_16 are made by: python prepare.py --dataset=recall_16 --n_pairs=16
out_dir = "out/compare_recall_width"
base = "config/recall_tiny.py"
variants = {
    "4_pairs_16": {"model_type": "mixer", "n_embd": 16, "dataset": "recall_4", "block_size": 17},
    "4_pairs_32": {"model_type": "mixer", "n_embd": 32, "dataset": "recall_4", "block_size": 17},
    "4_pairs_64": {"model_type": "mixer", "n_embd": 64, "dataset": "recall_4", "block_size": 17},
    "4_pairs_128": {"model_type": "mixer", "n_embd": 128, "dataset": "recall_4", "block_size": 17},
    "8_pairs_16": {"model_type": "mixer", "n_embd": 16, "dataset": "recall", "block_size": 33},
    "8_pairs_32": {"model_type": "mixer", "n_embd": 32, "dataset": "recall", "block_size": 33},
    "8_pairs_64": {"model_type": "mixer", "n_embd": 64, "dataset": "recall", "block_size": 33},
    "8_pairs_128": {"model_type": "mixer", "n_embd": 128, "dataset": "recall", "block_size": 33},
    "16_pairs_16": {"model_type": "mixer", "n_embd": 16, "dataset": "recall_16", "block_size": 65},
    "16_pairs_32": {"model_type": "mixer", "n_embd": 32, "dataset": "recall_16", "block_size": 65},
    "16_pairs_64": {"model_type": "mixer", "n_embd": 64, "dataset": "recall_16", "block_size": 65},
    "16_pairs_128": {"model_type": "mixer", "n_embd": 128, "dataset": "recall_16", "block_size": 65},
}
over = "n_embd"
budget = "tokens"
amount = 8e6
