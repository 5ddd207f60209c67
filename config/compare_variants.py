# The variants of the mixer (paper, section 2), with everything else equal: C 128, L 4, T 128.
# At equal tokens: --budget=tokens --amount=1e6 --out_dir=out/compare_variants_tokens
out_dir = "out/compare_variants"
base = "config/mixer_tiny.py"
variants = {
    "flat": {},
    "expanded": {"expanded": True},
    "parallel_2": {"parallel": 2},
    "kernel_4": {"kernel_size": 4},
    "heads_2": {"mixer_heads": 2},
    "toeplitz": {"toeplitz": True},
}
budget = "seconds"
amount = 60
