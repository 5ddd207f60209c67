# Does another optimizer change the order of mixer, Llama and hybrid? AdamW against Muon, with the embedding that suits
# each model better (compare_ablations.py); then a Toeplitz mixer and a Llama in windows of 512 tokens.
# At equal time: --budget=seconds --amount=40 --out_dir=out/compare_optimizers_seconds
out_dir = "out/compare_optimizers"
base = "config/mixer_tiny.py"
variants = {
    "mixer_adamw_8": {"embd_std": 0.1, "learning_rate": 8e-3},
    "mixer_adamw_16": {"embd_std": 0.1, "learning_rate": 1.6e-2},
    "mixer_adamw_32": {"embd_std": 0.1, "learning_rate": 3.2e-2},
    "mixer_muon_8": {"embd_std": 0.1, "learning_rate": 8e-3, "optimizer": "muon"},
    "mixer_muon_16": {"embd_std": 0.1, "learning_rate": 1.6e-2, "optimizer": "muon"},
    "mixer_muon_32": {"embd_std": 0.1, "learning_rate": 3.2e-2, "optimizer": "muon"},
    "toeplitz_adamw_16": {"embd_std": 0.1, "toeplitz": True, "learning_rate": 1.6e-2},
    "toeplitz_muon_8": {"embd_std": 0.1, "toeplitz": True, "learning_rate": 8e-3, "optimizer": "muon"},
    "toeplitz_muon_32": {"embd_std": 0.1, "toeplitz": True, "learning_rate": 3.2e-2, "optimizer": "muon"},
    "toeplitz_muon_16": {"embd_std": 0.1, "toeplitz": True, "learning_rate": 1.6e-2, "optimizer": "muon"},
    "llama_adamw_4": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 4e-3},
    "llama_adamw_8": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 8e-3},
    "llama_adamw_16": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 1.6e-2},
    "llama_muon_8": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 8e-3, "optimizer": "muon"},
    "llama_muon_16": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 1.6e-2, "optimizer": "muon"},
    "llama_muon_32": {"model_type": "llama", "embd_std": 1.0, "learning_rate": 3.2e-2, "optimizer": "muon"},
    "hybrid_adamw_4": {"model_type": "hybrid", "learning_rate": 4e-3},
    "hybrid_adamw_8": {"model_type": "hybrid", "learning_rate": 8e-3},
    "hybrid_adamw_16": {"model_type": "hybrid", "learning_rate": 1.6e-2},
    "hybrid_muon_8": {"model_type": "hybrid", "learning_rate": 8e-3, "optimizer": "muon"},
    "hybrid_muon_16": {"model_type": "hybrid", "learning_rate": 1.6e-2, "optimizer": "muon"},
    "hybrid_muon_32": {"model_type": "hybrid", "learning_rate": 3.2e-2, "optimizer": "muon"},
    "toeplitz_512_adamw_8": {"block_size": 512, "batch_size": 4, "embd_std": 0.1, "toeplitz": True,
        "learning_rate": 8e-3},
    "toeplitz_512_adamw_16": {"block_size": 512, "batch_size": 4, "embd_std": 0.1, "toeplitz": True,
        "learning_rate": 1.6e-2},
    "toeplitz_512_muon_16": {"block_size": 512, "batch_size": 4, "embd_std": 0.1, "toeplitz": True,
        "learning_rate": 1.6e-2, "optimizer": "muon"},
    "toeplitz_512_muon_32": {"block_size": 512, "batch_size": 4, "embd_std": 0.1, "toeplitz": True,
        "learning_rate": 3.2e-2, "optimizer": "muon"},
    "llama_512_adamw_4": {"block_size": 512, "batch_size": 4, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 4e-3},
    "llama_512_adamw_8": {"block_size": 512, "batch_size": 4, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 8e-3},
    "llama_512_muon_8": {"block_size": 512, "batch_size": 4, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 8e-3, "optimizer": "muon"},
    "llama_512_muon_16": {"block_size": 512, "batch_size": 4, "model_type": "llama", "embd_std": 1.0,
        "learning_rate": 1.6e-2, "optimizer": "muon"},
}
over = "learning_rate"
budget = "tokens"
amount = 1e6
