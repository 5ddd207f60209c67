"""
Sample text from a trained model, token by token as it comes.

    python sample.py --out_dir=out/mixer_tiny --start="def " --num_samples=3
    python sample.py --out_dir=out/mixer_tiny --start=FILE:prompt.txt --temperature=0

The checkpoint carries its tokenizer: the data folder is not needed. Mixers and attention alike keep a cache, so a new
token costs one row of work in each layer (Cache in model.py); how the window slides is said at LanguageModel.generate.
"""
import os
import sys
import time

import torch

from common import autocast, choose_device, choose_dtype, fail, load_model, stream_text
from configurator import configure

# defaults: change them by --key=value
out_dir = "out/mixer_tiny"  # folder of the run
checkpoint = "ckpt.pt"      # which of its checkpoints: ckpt.pt (the last) or best.pt
start = ""                  # prompt; FILE:path reads it from a file; without one, the text begins after an end of text
num_samples = 3             # samples, one after the other
max_new_tokens = 300        # tokens of each, fewer if the model ends its text
temperature = 0.8           # 0 is greedy, 1 is the model's own distribution
top_k = 200                 # keep only so many likeliest tokens
top_p = 1.0                 # keep the fewest tokens whose probabilities add up to this
seed = 1337                 # of the first sample; the next takes seed + 1
device = "auto"             # auto | cpu | cuda | cuda:1 | mps
dtype = "float32"           # auto | float32 | bfloat16 | float16
compile = False             # torch.compile: slow to start, worth it for long samples
# end of defaults

if __name__ == "__main__":
    globals().update(configure(sys.argv[1:], __file__))
    if num_samples < 1 or max_new_tokens < 1 or top_k < 1:
        fail("num_samples, max_new_tokens and top_k must be 1 or more")
    if temperature < 0 or not 0 < top_p <= 1:
        fail("temperature must be 0 or more, and top_p in (0, 1]")
    if start.startswith("FILE:"):
        path = os.path.expanduser(start.removeprefix("FILE:"))
        try:
            with open(path, encoding="utf-8", newline="") as f:
                start = f.read()
        except OSError as e:
            fail(f"cannot read {path}: {e.strerror.lower()}")
        except UnicodeDecodeError as e:
            fail(f"{path} is not UTF-8 text: wrong byte at offset {e.start}")

    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    model, tokenizer, state = load_model(os.path.join(out_dir, checkpoint), device)
    end_of_text = state["meta"]["eot_id"]
    prompt = tokenizer.encode_ordinary(start) or [end_of_text]
    if len(prompt) > model.config.block_size:
        fail(f"the prompt has {len(prompt)} tokens, but the model's window is {model.config.block_size}: shorten --start")
    if compile:
        model.run_blocks = torch.compile(model.run_blocks, dynamic=True)

    count, clock = 0, time.perf_counter()
    for n in range(num_samples):
        tokens = model.generate([prompt], max_new_tokens, temperature, top_k, top_p if top_p < 1 else None, seed + n,
                                stop_token=end_of_text)
        print(start, end="", flush=True)
        with autocast(device, dtype):
            for piece in stream_text(tokenizer, (token for token, in tokens)):
                print(piece, end="", flush=True)
                count += 1
        print("\n" + "-" * 80)
    seconds = time.perf_counter() - clock
    print(f"{count} tokens, {count / seconds:.0f} a second", file=sys.stderr)
