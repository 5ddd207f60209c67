# Autoencoding: a text passes through one vector (paper, section 2). With the author's settings: all embeddings start at
# std 1, and the Llama has no final norm. Windows of 32 and of 128 tokens; three learning rates for each model, in
# thousandths. With rotary positions the decoder's attention cannot tell its positions apart (lib/objectives.py), so one
# Llama has learned positions. First run: python prepare.py --input=tinystories.txt --dataset=tinystories
out_dir = "out/compare_autoencode"
base = "config/mixer_tiny.py"
dataset = "tinystories"
variants = {
    "mixer_32_8": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 8e-3},
    "mixer_32_16": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 1.6e-2},
    "mixer_32_32": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 3.2e-2},
    "llama_32_4": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 4e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False},
    "llama_32_8": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 8e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False},
    "llama_32_16": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 1.6e-2,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False},
    "llama_learned_32_4": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 4e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False, "position": "learned"},
    "llama_learned_32_8": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 8e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False, "position": "learned"},
    "llama_learned_32_16": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 1.6e-2,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False, "position": "learned"},
    "mixer_128_4": {"objective": "autoencode", "block_size": 128, "batch_size": 16, "learning_rate": 4e-3},
    "mixer_128_8": {"objective": "autoencode", "block_size": 128, "batch_size": 16, "learning_rate": 8e-3},
    "mixer_128_16": {"objective": "autoencode", "block_size": 128, "batch_size": 16, "learning_rate": 1.6e-2},
    "llama_128_2": {"objective": "autoencode", "block_size": 128, "batch_size": 16, "learning_rate": 2e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False},
    "llama_128_4": {"objective": "autoencode", "block_size": 128, "batch_size": 16, "learning_rate": 4e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False},
    "llama_128_8": {"objective": "autoencode", "block_size": 128, "batch_size": 16, "learning_rate": 8e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False},
    "llama_learned_128_4": {"objective": "autoencode", "block_size": 128, "batch_size": 16, "learning_rate": 4e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False, "position": "learned"},
    "llama_learned_128_8": {"objective": "autoencode", "block_size": 128, "batch_size": 16, "learning_rate": 8e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False, "position": "learned"},
    "llama_learned_128_16": {"objective": "autoencode", "block_size": 128, "batch_size": 16, "learning_rate": 1.6e-2,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False, "position": "learned"},
}
budget = "tokens"
amount = 2e6
