# Exercise 6 of LESSON.md: a module of your own that mixes tokens, under the name "average" in model.py, beside a mixer
# and a Toeplitz mixer. It is as small as config/smoke.py, and is not compiled.
out_dir = "out/lesson/own"
base = "config/smoke.py"
variants = {
    "mixer": {},
    "toeplitz": {"toeplitz": True},
    "average": {"model_type": "average"},
}
budget = "tokens"
amount = 6e5
