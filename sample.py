"""
Sample text from a trained model, token by token as it comes.

    python sample.py --out_dir=out/mixer_tiny --start="def" --num_samples=3
    python sample.py --out_dir=out/mixer_tiny --start=FILE:prompt.txt --temperature=0

The checkpoint carries its tokenizer, so that the data folder is not needed. Mixers and attention both keep a
cache: one more token costs one row of work per layer. LanguageModel.generate in model.py has the method.
"""
import os
import sys
import time
from functools import partial

from configurator import run_script, share_the_cpu

if __name__ == "__main__":
    share_the_cpu()  # before torch is imported

from lib.data import stream_text
from lib.device import autocast, compile_or_not, setup
from lib.fast import fixed_step, prepare_for_sampling, use_fixed_steps
from lib.runs import load_model, used_settings
from lib.sources import read_prompt

# defaults: change them with --key=value
out_dir = "out/mixer_tiny"  # folder of the run
checkpoint = "ckpt.pt"      # which of its checkpoints: ckpt.pt (the last) or best.pt
start = ""                  # prompt, or FILE:path of a file that holds it; empty: the start of a document
num_samples = 3             # [1, inf) samples, one after the other
max_new_tokens = 300        # [1, inf) tokens per sample, fewer if the model ends its text
temperature = 0.8           # [0, inf) 0 is greedy, 1 is the model's own distribution
top_k = 200                 # [1, inf) draw from this many likeliest tokens
top_p = 1.0                 # (0, 1] draw from the fewest likeliest tokens whose probabilities add up to this
seed = 1337                 # [0, inf) seed of the first sample; the next one takes seed + 1
device = "auto"             # auto, cpu, cuda, cuda:1 or mps
dtype = "float32"           # auto | float32 | bfloat16 | float16: number format of the matmuls
compile = False             # torch.compile, which needs fast: slow to start, worth it for long samples
fast = True                 # faster equivalents of functions of model.py (lib/fast.py)
# end of defaults


def main(args):
    """Print the samples. Raises ValueError if the prompt is too long, or the model predicts no next token."""
    if args.compile and not args.fast:
        raise ValueError("--compile=true compiles a step of lib/fast.py: it needs --fast=true")
    text = read_prompt(args.start)
    device, dtype = setup(args.device, args.dtype, args.fast)
    model, tokenizer, checkpoint = load_model(os.path.join(args.out_dir, args.checkpoint), device)
    used = used_settings(checkpoint)
    if used["objective"] != "causal":
        raise ValueError(f"{args.out_dir} was trained with objective={used['objective']}: it cannot continue a text")
    if not text and used["windows"] == "document":
        raise ValueError(f"{args.out_dir} was trained with windows=document and has never seen what comes before a "
                         "document: give its beginning by --start")
    end_of_text = checkpoint["meta"]["eot_id"]
    prompt = tokenizer.encode_ordinary(text) or [end_of_text]  # an empty prompt is the start of a document
    if len(prompt) > model.config.block_size:
        raise ValueError(f"the prompt has {len(prompt)} tokens, the window {model.config.block_size}: shorten --start")
    if args.fast:
        prepare_for_sampling(model, dtype)
    if args.compile:
        def use(step):
            if not use_fixed_steps(model, step):
                print("--compile=true changes nothing: a module of this model has no compiled form", file=sys.stderr)
            with autocast(device, dtype):
                list(model.generate([[end_of_text]], 2))
        compile_or_not(partial(fixed_step, model), use)

    count, clock = 0, time.perf_counter()
    for n in range(args.num_samples):
        tokens = model.generate([prompt], args.max_new_tokens, args.temperature, args.top_k, args.top_p,
                                args.seed + n, end_of_text)
        new_ids = (token for token, in tokens if token != end_of_text)
        print(text, end="", flush=True)
        with autocast(device, dtype):
            for piece in stream_text(tokenizer, new_ids):
                print(piece, end="", flush=True)
                count += 1
        count -= 1  # the last piece only completes the text
        print("\n" + "-" * 80)
    seconds = time.perf_counter() - clock
    print(f"{count} tokens, {count / seconds:.0f} per second", file=sys.stderr)


if __name__ == "__main__":
    run_script(main, "sample.py")
