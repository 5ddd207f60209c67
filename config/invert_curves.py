# How much do a trained mixer and a trained Llama keep after each block, and in windows of each length, at two initial
# standard deviations of the embedding? First run python invert.py config/invert_table.py, which trains them.
# One core of an Intel Xeon: 4 min 53 s.
out_dir = "out/inversion_curves"
compare = ["out/inversion/mixer_torch_1_1337", "out/inversion/mixer_torch_0.02_1337",
           "out/inversion/llama_normal_1_1337", "out/inversion/llama_normal_0.02_1337"]
layers = ["each"]
windows = [16, 32, 64]
methods = ["gd", "adam"]
lrs = [0.02, 0.2]
steps = 200
n_prompts = 3
show = 0
