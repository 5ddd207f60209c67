# Does a mixer need more width to look up more pairs, as Zoology (arXiv 2312.04927) says of fixed convolutions?
# python prepare.py --dataset=recall_4 --n_pairs=4 --n_keys=36 --n_values=40 --n_documents=300000; likewise 8 and 16
out_dir = "out/compare_recall_width"
base = "config/recall_tiny.py"
variants = {
    "4_pairs_16": {"model_type": "mixer", "n_embd": 16, "dataset": "recall_4", "block_size": 17},
    "4_pairs_32": {"model_type": "mixer", "n_embd": 32, "dataset": "recall_4", "block_size": 17},
    "4_pairs_64": {"model_type": "mixer", "n_embd": 64, "dataset": "recall_4", "block_size": 17},
    "4_pairs_128": {"model_type": "mixer", "n_embd": 128, "dataset": "recall_4", "block_size": 17},
    "8_pairs_16": {"model_type": "mixer", "n_embd": 16, "dataset": "recall_8", "block_size": 33},
    "8_pairs_32": {"model_type": "mixer", "n_embd": 32, "dataset": "recall_8", "block_size": 33},
    "8_pairs_64": {"model_type": "mixer", "n_embd": 64, "dataset": "recall_8", "block_size": 33},
    "8_pairs_128": {"model_type": "mixer", "n_embd": 128, "dataset": "recall_8", "block_size": 33},
    "16_pairs_16": {"model_type": "mixer", "n_embd": 16, "dataset": "recall_16", "block_size": 65},
    "16_pairs_32": {"model_type": "mixer", "n_embd": 32, "dataset": "recall_16", "block_size": 65},
    "16_pairs_64": {"model_type": "mixer", "n_embd": 64, "dataset": "recall_16", "block_size": 65},
    "16_pairs_128": {"model_type": "mixer", "n_embd": 128, "dataset": "recall_16", "block_size": 65},
}
over = "n_embd"
budget = "tokens"
amount = 3e6
