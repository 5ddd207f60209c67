# One choice of the mixer or of the Llama changed at a time, where the paper leaves it open; 1 M training tokens each.
# Besides, the paper's early transformer, OpenAI's first GPT (gpt_first), at three learning rates.
out_dir = "out/compare_ablations"
base = "config/mixer_tiny.py"
variants = {
    "mixer": {},
    "mixer_std_tenth": {"embd_std": 0.1},
    "mixer_std_fiftieth": {"embd_std": 0.02},
    "mixer_init_normal": {"init": "normal"},
    "mixer_norm_none": {"norm": "none", "learning_rate": 4e-3},
    "mixer_residual_off": {"residual": False, "learning_rate": 4e-3},
    "mixer_rmsnorm": {"norm": "rmsnorm"},
    "mixer_final_norm": {"final_norm": True},
    "mixer_tied": {"tie": True},
    "mixer_tied_std_fiftieth": {"tie": True, "embd_std": 0.02},
    "mixer_learned": {"position": "learned"},
    "mixer_rope": {"position": "rope"},
    "mixer_swiglu": {"mlp": "swiglu"},
    "mixer_swiglu_std_tenth": {"mlp": "swiglu", "embd_std": 0.1},
    "toeplitz_std_tenth": {"toeplitz": True, "embd_std": 0.1},
    "toeplitz_swiglu_std_tenth": {"toeplitz": True, "mlp": "swiglu", "embd_std": 0.1},
    "llama": {"model_type": "llama", "learning_rate": 4e-3},
    "llama_std_tenth": {"model_type": "llama", "learning_rate": 4e-3, "embd_std": 0.1},
    "llama_std_1": {"model_type": "llama", "learning_rate": 8e-3, "embd_std": 1.0},
    "llama_init_torch": {"model_type": "llama", "learning_rate": 4e-3, "init": "torch"},
    "llama_norm_none": {"model_type": "llama", "learning_rate": 4e-3, "norm": "none"},
    "llama_residual_off": {"model_type": "llama", "learning_rate": 4e-3, "residual": False},
    "llama_layernorm": {"model_type": "llama", "learning_rate": 4e-3, "norm": "layernorm"},
    "llama_no_final_norm": {"model_type": "llama", "learning_rate": 4e-3, "final_norm": False},
    "llama_tied": {"model_type": "llama", "learning_rate": 4e-3, "tie": True},
    "llama_no_position": {"model_type": "llama", "learning_rate": 4e-3, "position": "none"},
    "llama_learned": {"model_type": "llama", "learning_rate": 4e-3, "position": "learned"},
    "llama_gelu": {"model_type": "llama", "learning_rate": 4e-3, "mlp": "gelu"},
    "llama_gelu_std_1": {"model_type": "llama", "learning_rate": 8e-3, "mlp": "gelu", "embd_std": 1.0},
    "gpt": {"model_type": "gpt", "learning_rate": 4e-3},
    "gpt_first_half": {"model_type": "gpt", "learning_rate": 5e-4, "post_norm": True, "final_norm": False, "tie": True,
        "dropout": 0.1},
    "gpt_first_1": {"model_type": "gpt", "learning_rate": 1e-3, "post_norm": True, "final_norm": False, "tie": True,
        "dropout": 0.1},
    "gpt_first_2": {"model_type": "gpt", "learning_rate": 2e-3, "post_norm": True, "final_norm": False, "tie": True,
        "dropout": 0.1},
}
budget = "tokens"
amount = 1e6
