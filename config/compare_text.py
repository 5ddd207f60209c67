# On real text, does the Llama's lead in long windows come from looking up, from positions, or from packing? Windows of
# 128 and of 512 tokens, packed as usual, and with one document each, from its beginning. 2048 tokens per step.
# python prepare.py --input=tinystories.txt --dataset=tinystories
out_dir = "out/compare_text"
base = "config/mixer_tiny.py"
dataset = "tinystories"
variants = {
    "mixer_std_tenth_128": {"embd_std": 0.1, "block_size": 128, "batch_size": 16},
    "toeplitz_128": {"toeplitz": True, "block_size": 128, "batch_size": 16},
    "llama_std_1_128": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 8e-3,
        "block_size": 128, "batch_size": 16},
    "gpt_128": {"model_type": "gpt", "learning_rate": 4e-3, "block_size": 128, "batch_size": 16},
    "hybrid_128": {"model_type": "hybrid", "learning_rate": 8e-3, "block_size": 128, "batch_size": 16},
    "mixer_std_tenth_document_128": {"embd_std": 0.1, "block_size": 128, "batch_size": 16, "windows": "document"},
    "toeplitz_document_128": {"toeplitz": True, "block_size": 128, "batch_size": 16, "windows": "document"},
    "llama_std_1_document_128": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 8e-3,
        "block_size": 128, "batch_size": 16, "windows": "document"},
    "gpt_document_128": {"model_type": "gpt", "learning_rate": 4e-3,
        "block_size": 128, "batch_size": 16, "windows": "document"},
    "hybrid_document_128": {"model_type": "hybrid", "learning_rate": 8e-3,
        "block_size": 128, "batch_size": 16, "windows": "document"},
    "mixer_std_tenth_512": {"embd_std": 0.1, "block_size": 512, "batch_size": 4},
    "toeplitz_512": {"toeplitz": True, "block_size": 512, "batch_size": 4},
    "llama_std_1_512": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 8e-3,
        "block_size": 512, "batch_size": 4},
    "gpt_512": {"model_type": "gpt", "learning_rate": 4e-3, "block_size": 512, "batch_size": 4},
    "hybrid_512": {"model_type": "hybrid", "learning_rate": 8e-3, "block_size": 512, "batch_size": 4},
    "mixer_std_tenth_document_512": {"embd_std": 0.1, "block_size": 512, "batch_size": 4, "windows": "document"},
    "toeplitz_document_512": {"toeplitz": True, "block_size": 512, "batch_size": 4, "windows": "document"},
    "llama_std_1_document_512": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 8e-3,
        "block_size": 512, "batch_size": 4, "windows": "document"},
    "gpt_document_512": {"model_type": "gpt", "learning_rate": 4e-3,
        "block_size": 512, "batch_size": 4, "windows": "document"},
    "hybrid_document_512": {"model_type": "hybrid", "learning_rate": 8e-3,
        "block_size": 512, "batch_size": 4, "windows": "document"},
}
over = "block_size"
budget = "tokens"
amount = 1e6
