"""
Sample text from a trained model, token by token as it comes.

    python sample.py --out_dir=out/mixer_tiny --start="def" --num_samples=3
    python sample.py --out_dir=out/mixer_tiny --start=FILE:prompt.txt --temperature=0

The checkpoint carries its tokenizer: the data folder is not needed. Mixers and attention both keep a
cache, so that a token costs one row of work a layer (Cache in model.py); `generate` says how it slides.
"""
import os
import sys
import time
from functools import partial

import torch
import torch.nn as nn

from common import autocast, choose_device, choose_dtype, read_prompt
from configurator import configure, fail
from dataset import stream_text
from fast import linear_of_few_rows
from model import Cache, MaskedConv
from runs import load_model

# defaults: change them by --key=value
out_dir = "out/mixer_tiny"  # folder of the run
checkpoint = "ckpt.pt"      # which of its checkpoints: ckpt.pt (the last) or best.pt
start = ""                  # prompt, or FILE:path of a file that holds it; "": the start of a document
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


@torch.no_grad()
def prepare_for_sampling(model, dtype):
    """The model, faster at a few rows of work at a time, and with equal results; for inference only. Weights
    of matmuls are cast to dtype now: autocast would do the same, but for each token anew, which takes longer
    than the matmuls of a token."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, MaskedConv)) and module.weight is not model.wte.weight:
            module.weight.data = module.weight.to(dtype)
        if isinstance(module, nn.Linear):
            module.forward = partial(linear_of_few_rows, weight=module.weight, bias=module.bias)
    return model


@torch.inference_mode()
def generate(model, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=0,
             stop_token=None, cached=True):
    """Continue a batch of prompts; yields after each step a list with the new token id of each prompt.

    prompts: B lists of 1 to block_size ids, of any lengths. An entry is None while its prompt is still being
    read (longer ones take more steps) and after its row has ended: by max_new_tokens, or with stop_token.
    temperature 0 is greedy; top_k keeps the k likeliest tokens, top_p the fewest that add up to p.
    cached=False computes the whole window for each token, with the same result. Raises ValueError for a
    prompt that is empty or longer than block_size.

    The window: there is no position past block_size. When all are taken, the older half of the tokens is
    dropped and the newer half read again from position 0: a token costs O(T C) a layer, one in T/2 a reading.
    """
    block_size, device = model.config.block_size, model.wte.weight.device
    lengths = [len(prompt) for prompt in prompts] or [0]
    if min(lengths) < 1 or max(lengths) > block_size:
        raise ValueError(f"a prompt has 1 to block_size = {block_size} tokens")
    generator = torch.Generator(device).manual_seed(seed)
    idx = torch.tensor([prompt[:min(lengths)] for prompt in prompts], device=device)  # (B, step)
    cache, unread, step, left = Cache(block_size), idx, min(lengths), [max_new_tokens] * len(prompts)
    while any(left):
        if idx.size(1) > block_size:
            idx = idx[:, -max(1, block_size // 2):]
            cache, unread = Cache(block_size), idx
        x = model.run_blocks(model.embed(unread if cached else idx), cache=cache if cached else None)
        drawn = sample_token(model.head(x[:, -1])[0], temperature, top_k, top_p, generator).tolist()
        # a row that is still inside its prompt takes the prompt's token
        tokens = [prompt[step] if step < len(prompt) else token for prompt, token in zip(prompts, drawn)]
        new = [token if step >= n and more else None for token, n, more in zip(tokens, lengths, left)]
        yield new
        left = [n if t is None else 0 if t == stop_token else n - 1 for t, n in zip(new, left)]
        unread = torch.tensor(tokens, device=device)[:, None]                         # (B, 1)
        idx, step = torch.cat([idx, unread], dim=1), step + 1


def sample_token(logits, temperature, top_k, top_p, generator):
    """Logits (B, V) -> one token id a row, (B,)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    V = logits.size(-1)
    logits, idx = (logits.float() / temperature).topk(min(top_k or V, V))  # (B, k), likeliest first
    p = logits.softmax(dim=-1)
    if top_p and top_p < 1:
        p = p.masked_fill(p.cumsum(dim=-1) - p >= top_p, 0.0)  # those that come before it are enough
    return idx.gather(1, torch.multinomial(p, 1, generator=generator))[:, 0]


if __name__ == "__main__":
    globals().update(configure(sys.argv[1:], __file__))
    if num_samples < 1 or max_new_tokens < 1 or top_k < 1:
        fail("num_samples, max_new_tokens and top_k must be 1 or more")
    if temperature < 0 or not 0 < top_p <= 1:
        fail("temperature must be 0 or more, and top_p in (0, 1]")
    start = read_prompt(start)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    model, tokenizer, state = load_model(os.path.join(out_dir, checkpoint), device)
    model = prepare_for_sampling(model, dtype)
    if (objective := state["config"].get("objective", "causal")) != "causal":
        fail(f"{out_dir} was trained to {objective}: it cannot continue a text")
    end_of_text = state["meta"]["eot_id"]
    prompt = tokenizer.encode_ordinary(start) or [end_of_text]
    if len(prompt) > model.config.block_size:
        fail(f"the prompt has {len(prompt)} tokens, the window {model.config.block_size}: shorten --start")
    if compile:
        model.run_blocks = torch.compile(model.run_blocks, dynamic=True)

    count, clock = 0, time.perf_counter()
    for n in range(num_samples):
        tokens = generate(model, [prompt], max_new_tokens, temperature, top_k, top_p, seed + n, end_of_text)
        print(start, end="", flush=True)
        with autocast(device, dtype):
            for piece in stream_text(tokenizer, (token for token, in tokens)):
                print(piece, end="", flush=True)
                count += 1
        count -= 1  # the last piece only completes the text
        print("\n" + "-" * 80)
    seconds = time.perf_counter() - clock
    print(f"{count} tokens, {count / seconds:.0f} a second", file=sys.stderr)
