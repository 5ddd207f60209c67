# Exercise 3 of LESSON.md: which architecture learns to look up a value by its key? First run
# python prepare.py --dataset=recall. The checkpoints that are kept let look.py show recall over training.
out_dir = "out/lesson/recall"
base = "config/recall_tiny.py"
variants = {
    "mixer": {"model_type": "mixer", "keep_every": 200},
    "llama": {"model_type": "llama", "keep_every": 200},
    "hybrid": {"model_type": "hybrid", "keep_every": 200},
}
budget = "tokens"
amount = 1.5e6
