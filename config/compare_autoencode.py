# Autoencoding: a text passes through one vector (paper, section 2). With rotary positions the decoder's attention
# cannot tell its positions apart (lib/objectives.py). So the Llama is also trained with learned positions, and so is
# the mixer, for comparison.
out_dir = "out/compare_autoencode"
base = "config/mixer_tiny.py"
variants = {
    "mixer": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 4e-3},
    "mixer_learned": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 4e-3,
                      "position": "learned"},
    "llama": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 4e-3,
              "model_type": "llama"},
    "llama_learned": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 4e-3,
                      "model_type": "llama", "position": "learned"},
    "llama_std_1": {"objective": "autoencode", "block_size": 32, "batch_size": 64, "learning_rate": 4e-3,
                    "model_type": "llama", "position": "learned", "embd_std": 1.0},
}
budget = "tokens"
amount = 2e6
