# Autoencoding: a text passes through one vector (paper, section 2). With the author's settings: all embeddings start at
# std 1, and the Llama has no final norm. Windows of 32 tokens at three learning rates (mixer_8: 8e-3), and of 128. With
# rotary positions the decoder's attention cannot tell its positions apart (lib/objectives.py), so one Llama has learned
# positions. First run: python prepare.py --input=tinystories.txt --dataset=tinystories
out_dir = "out/compare_autoencode"
base = "config/mixer_tiny.py"
dataset = "tinystories"
variants = {
    "mixer_4": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 4e-3},
    "mixer_8": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 8e-3},
    "mixer_16": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 1.6e-2},
    "llama_2": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 2e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False},
    "llama_4": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 4e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False},
    "llama_8": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 8e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False},
    "llama_learned_4": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 4e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False, "position": "learned"},
    "mixer_128_8": {"objective": "autoencode", "learning_rate": 8e-3},
    "llama_128_4": {"objective": "autoencode", "learning_rate": 4e-3,
        "model_type": "llama", "embd_std": 1.0, "final_norm": False},
}
budget = "tokens"
amount = 2e6
