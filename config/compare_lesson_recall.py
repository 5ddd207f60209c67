# Exercise 3 of LESSON.md: which architecture learns to look up a value by its key? First run
# python prepare.py --dataset=recall. The checkpoints that are kept let look.py show recall over training.
out_dir = "out/lesson/recall"
base = "config/recall_tiny.py"
variants = {
<<<<<<< HEAD
    "mixer": {"model_type": "mixer", "batch_size": 32, "keep_every": 200},
    "llama": {"model_type": "llama", "batch_size": 32, "keep_every": 200},
    "hybrid": {"model_type": "hybrid", "batch_size": 32, "keep_every": 200},
=======
    "mixer": {"model_type": "mixer", "keep_every": 200},
    "llama": {"model_type": "llama", "keep_every": 200},
    "hybrid": {"model_type": "hybrid", "keep_every": 200},
>>>>>>> 0dd16cc738b90d9d4c3e6cc8c0ed0caeee8c658a
}
budget = "tokens"
amount = 1.5e6
