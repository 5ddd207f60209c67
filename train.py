"""
Train a language model: on a laptop, a GPU, or many (arXiv 2409.01482, sections 2 and 4).

    python train.py config/mixer_tiny.py                              # two cores, minutes python train.py
    config/mixer_tiny.py --model_type=llama           # any key below or in model.py's ModelConfig python
    train.py config/mixer_tiny.py --init_from=resume           # go on where it stopped, exactly torchrun
    --nproc_per_node=4 train.py config/mixer_tinystories.py --gradient_accumulation_steps=4

Writes into out_dir: ckpt.pt (the last), best.pt (lowest validation loss), log.csv, config.json and loss.png.
"""
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from common import (autocast, build_tokenizer, choose_device, choose_dtype, fail, get_batch, load_checkpoint, load_meta,
                    load_tokens, measure_peak_flops, plot_log, replacing, stream_text, training_windows, validation_windows)
from configurator import configure
from model import LanguageModel, ModelConfig
from sample import generate

# defaults: change them by a config file and by --key=value
out_dir = "out"                   # folder of the run
eval_interval = 500               # iterations between evaluations, each followed by a checkpoint
eval_iters = 20           # an evaluation reads eval_iters * 32 windows: the same ones, whatever batch_size is
log_interval = 10                 # iterations between lines of the log
init_from = "scratch"             # scratch | resume | path of a checkpoint whose weights are the start
dataset = "python"                # folder in data_dir, made by prepare.py
data_dir = "data"                 # where datasets are
batch_size = 32                   # B: windows of block_size tokens in a forward pass
gradient_accumulation_steps = 1   # forward passes an iteration, over all processes
max_iters = 100_000               # the run ends when the first of the three budgets is used up
max_tokens = 0                    # tokens to train on; 0: no limit
max_seconds = 0.0               # seconds of training, without compilation, evaluation and saving; 0: no limit
learning_rate = 5e-4              # peak of the schedule
weight_decay = 0.1                # of matrices and embeddings
beta1 = 0.9                       # AdamW
beta2 = 0.95                      # AdamW
grad_clip = 1.0                   # largest norm of the gradient; 0.0: no clipping
decay_lr = True                   # False keeps learning_rate after the warm-up
schedule = "cosine"               # cosine | linear, from learning_rate down to min_lr
warmup_iters = 500                # iterations of linear rise to learning_rate
lr_decay_iters = 0           # iteration at which min_lr is reached; 0: the end of the budget, whichever it is
min_lr = 0.0                      # learning rate at the end
device = "auto"                   # auto | cpu | cuda | cuda:1 | mps
dtype = "auto"                    # auto | float32 | bfloat16 | float16, of the matmuls; weights are float32
compile = True                   # torch.compile; where that does not work, a line says so and the run goes on
backend = "auto"                  # of torchrun: auto | nccl | gloo
seed = 1337                       # of initial weights, order of the data and dropout
sample_tokens = 200               # tokens of sample text printed at the end
wandb_log = False                 # log to Weights & Biases too (pip install wandb)
wandb_project = "masked-mixers"   # its project
wandb_run_name = "run"            # its run name
# end of defaults
here = os.path.dirname(os.path.abspath(__file__))
config = configure(sys.argv[1:], __file__, os.path.join(here, "model.py"))
globals().update(config)
for key in "eval_interval", "eval_iters", "log_interval", "batch_size", "gradient_accumulation_steps", "max_iters":
    if config[key] < 1:
        fail(f"{key} must be 1 or more; got {config[key]}")
if schedule not in ("cosine", "linear"):
    fail(f"schedule must be cosine or linear; got {schedule!r}")

# ------------------------------------------------------------------------------------------------------------
# processes and device; torchrun sets RANK, LOCAL_RANK and WORLD_SIZE

rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
ddp, master = world_size > 1, rank == 0
device = choose_device(f"cuda:{os.environ['LOCAL_RANK']}" if ddp and torch.cuda.is_available() else device)
dtype = choose_dtype(dtype, device)
if device.type == "cuda":
    torch.cuda.set_device(device)
if ddp:
    dist.init_process_group(("nccl" if device.type == "cuda" else "gloo") if backend == "auto" else backend)
    if gradient_accumulation_steps % world_size:
        fail(f"gradient_accumulation_steps {gradient_accumulation_steps} must be a multiple of {world_size} processes")
torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32 on CUDA


def say(*message):
    if master:
        print(*message, flush=True)


def across_ranks(values, op=dist.ReduceOp.SUM):
    """Floats reduced over all processes, so that all decide alike."""
    if not ddp:
        return values
    values = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(values, op)
    return values.tolist()


# ------------------------------------------------------------------------------------------------------------
# data

folder = os.path.join(data_dir, dataset)
if dataset == "python" and master and not os.path.exists(os.path.join(folder, "meta.json")):
    say(f"{folder} is missing: preparing it from the Python source on this machine")
    command = [sys.executable, os.path.join(here, "prepare.py"), "--dataset=python", f"--data_dir={data_dir}"]
    if status := subprocess.run(command).returncode:
        raise SystemExit(status)  # prepare.py has said why
if ddp:
    dist.barrier()
meta = load_meta(folder)
data = {split: load_tokens(folder, split, meta) for split in ("train", "val")}
block_size, vocab_size = config["block_size"], meta["vocab_size"]
for split in data:
    if len(data[split]) <= 2 * block_size:
        fail(f"{folder}/{split}.bin has {len(data[split])} tokens, too few for windows of block_size {block_size}: "
             "use more text or a smaller --block_size")
tokens_per_iter = gradient_accumulation_steps * batch_size * block_size

# ------------------------------------------------------------------------------------------------------------
# model and optimizer: new, or as a checkpoint left them

try:
    model_config = ModelConfig(**{k: config[k] for k in ModelConfig.__annotations__ if k in config},
                               vocab_size=vocab_size)
except ValueError as e:
    fail(str(e))
torch.manual_seed(seed)
raw_model = LanguageModel(model_config).to(device)
optimizer = raw_model.configure_optimizers(weight_decay, learning_rate, (beta1, beta2))
scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

ckpt_path, log_path = os.path.join(out_dir, "ckpt.pt"), os.path.join(out_dir, "log.csv")
# the state of the run; position is where the data order stands, loss_sum and loss_count make the next line's
# mean
state = dict(iter=0, tokens=0, seconds=0.0, position=(0, 0), best_val_loss=math.inf, loss_sum=0.0, loss_count=0)
if init_from != "scratch":
    path = ckpt_path if init_from == "resume" else os.path.expanduser(init_from)
    checkpoint = load_checkpoint(path)
    for key, value in asdict(model_config).items():
        if checkpoint["model_config"][key] != value and key != "dropout":
            fail(f"{path} was trained with {key}={checkpoint['model_config'][key]}, this run has {key}={value}: "
                 "give it the same config and dataset")
    if checkpoint["meta"]["ranks"] != meta["ranks"]:
        fail(f"{path} was trained with another tokenizer than that of {folder}")
    raw_model.load_state_dict(checkpoint["model"])
    if init_from == "resume":
        optimizer.load_state_dict(checkpoint["optimizer"])
        scaler.load_state_dict(checkpoint["scaler"])
        state = checkpoint["state"]
    del checkpoint  # or its copy of the weights stays in memory
start_iter = state["iter"]

# ------------------------------------------------------------------------------------------------------------
# log

COLUMNS = ["iter", "tokens", "seconds", "train_loss", "val_loss", "val_bpb", "lr", "grad_norm", "tok_per_sec", "mfu"]
if master:
    try:
        os.makedirs(out_dir, exist_ok=True)
        rows = []
        if init_from == "resume":  # a killed run may have logged more than it saved
            with open(log_path, encoding="utf-8", newline="") as f:
                rows = [row for row in csv.DictReader(f) if int(row["iter"]) <= start_iter]
        elif os.path.exists(ckpt_path):
            previous = os.path.join(out_dir, "previous")
            os.makedirs(previous, exist_ok=True)
            for name in ("ckpt.pt", "best.pt", "log.csv", "config.json", "loss.png"):
                if os.path.exists(os.path.join(out_dir, name)):
                    os.replace(os.path.join(out_dir, name), os.path.join(previous, name))
            say(f"{out_dir} held a run; it is in {previous} now (--init_from=resume would have continued it)")
    except OSError as e:
        fail(f"cannot write to out_dir {out_dir}: {e.strerror.lower()}")
    with replacing(log_path, "w") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with replacing(os.path.join(out_dir, "config.json"), "w") as f:
        json.dump(config | asdict(model_config) | {"device": str(device), "dtype": str(dtype).removeprefix("torch."),
                                                   "torch": torch.__version__, "processes": world_size}, f, indent=1)
if wandb_log and master:
    try:
        import wandb
    except ImportError:
        fail("wandb_log needs the package wandb: pip install wandb")
    wandb.init(project=wandb_project, name=wandb_run_name, config=config)

flops_per_token = 3 * raw_model.estimate_flops()  # forward, and twice that backward
peak_flops = measure_peak_flops(device, dtype) * world_size
say(raw_model.parameter_table())
say(f"{model_config.model_type} on {device}, {str(dtype).removeprefix('torch.')}: {flops_per_token / 1e6:.1f} MFLOP and "
    f"{tokens_per_iter:,} tokens an iteration; peak of a matmul here {peak_flops / 1e12:.2f} TFLOP/s")

# ------------------------------------------------------------------------------------------------------------
# one optimizer step, evaluation, saving

def train_step(position, lr, update=True):
    """One iteration from `position` on: returns the position after it, the mean loss and the gradient's norm
    (tensors: nothing here waits for the device). Every process takes its share of the same windows, so that
    the order of the data does not depend on how many there are."""
    starts, position = training_windows(len(data["train"]), block_size, seed, position,
                                        gradient_accumulation_steps * batch_size)
    micro_batches = [starts[i:i + batch_size] for i in range(0, len(starts), batch_size)][rank::world_size]
    loss_sum = torch.zeros((), device=device)
    for i, micro_batch in enumerate(micro_batches):
        idx, targets = get_batch(data["train"], micro_batch, block_size, device, vocab_size)
        last = i == len(micro_batches) - 1  # gradients are exchanged once, with the last backward pass
        with nullcontext() if last or not ddp else model.no_sync():
            with autocast(device, dtype):
                loss = model(idx, targets, return_logits=False)[1] / len(micro_batches)
            scaler.scale(loss).backward()
        loss_sum += loss.detach()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip or math.inf)
    if update:
        for group in optimizer.param_groups:
            group["lr"] = lr
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return position, loss_sum, norm


@torch.no_grad()
def evaluate():
    """Mean loss, in nats a token, over the fixed validation windows, shared among the processes."""
    model.eval()
    starts = validation_windows(len(data["val"]), block_size, 32 * eval_iters)[rank::world_size]
    total, count = 0.0, 0
    for i in range(0, len(starts), batch_size):
        real = starts[i:i + batch_size]
        idx, targets = get_batch(data["val"], list(real) + [0] * (batch_size - len(real)), block_size, device, vocab_size)
        targets = targets.clone()
        targets[len(real):] = -1  # filled up to batch_size, so that nothing is compiled for another shape; not counted
        with autocast(device, dtype):
            total += model(idx, targets, return_logits=False)[1].item() * len(real)
        count += len(real)
    total, count = across_ranks([total, count])
    model.train()
    return total / count


def save(name):
    with replacing(os.path.join(out_dir, name)) as f:
        torch.save({"model": raw_model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
                    "state": state, "model_config": asdict(model_config), "config": config, "meta": meta}, f)


def learning_rate_at(progress):
    """Warm-up, then cosine or linear decay to min_lr; progress is the share of the budget that is used, 0 to
    1."""
    if state["iter"] < warmup_iters:
        return learning_rate * (state["iter"] + 1) / warmup_iters
    if not decay_lr:
        return learning_rate
    if lr_decay_iters:
        progress = state["iter"] / lr_decay_iters
    progress = min(progress, 1.0)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return min_lr + (learning_rate - min_lr) * left


# ------------------------------------------------------------------------------------------------------------
# compile, outside of the clock: one step whose update is not applied, and one evaluation

def wrap(module):
    return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None) if ddp else module


model = wrap(torch.compile(raw_model) if compile else raw_model)
start = time.perf_counter()
if compile:
    try:
        train_step(state["position"], 0.0, update=False)
        evaluate()
        say(f"compiled in {time.perf_counter() - start:.0f} s")
    except Exception as e:  # no C++ compiler, an unsupported platform: torch raises many types here
        say(f"torch.compile does not work here ({type(e).__name__}): going on without it, slower")
        optimizer.zero_grad(set_to_none=True)
        model = wrap(raw_model)

# ------------------------------------------------------------------------------------------------------------
# the loop; Ctrl-C and SIGTERM end it after the iteration, with a checkpoint

caught = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: (caught.append(number), signal.signal(number, signal.SIG_DFL)))

loss_sum, norm, val_loss = torch.tensor(state["loss_sum"], device=device), torch.zeros(()), None
clock, row_tokens, row_seconds = time.perf_counter(), state["tokens"], state["seconds"]  # since the last row
seconds_before = state["seconds"]
while True:
    it = state["iter"]
    elapsed, stopped = across_ranks([seconds_before + time.perf_counter() - clock, float(bool(caught))], dist.ReduceOp.MAX)
    progress = max(it / max_iters, state["tokens"] / max_tokens if max_tokens else 0, elapsed / max_seconds if max_seconds else 0)
    lr, done = learning_rate_at(progress), progress >= 1 or stopped
    evaluates = (it % eval_interval == 0 or done) and not (it == start_iter and init_from == "resume" and not done)

    if evaluates or it % log_interval == 0 and it > start_iter:
        state["loss_sum"] = loss_sum.item()  # waits for the device, so the clock is right
        elapsed = seconds_before + time.perf_counter() - clock
        train_loss, = across_ranks([state["loss_sum"] / max(1, state["loss_count"]) / world_size])
        speed = (state["tokens"] - row_tokens) / (elapsed - row_seconds) if state["tokens"] > row_tokens else 0.0
        if evaluates:
            val_loss = evaluate()
        if not math.isfinite(train_loss) or evaluates and not math.isfinite(val_loss):
            fail(f"the loss is no longer finite at iteration {it}; {out_dir} keeps the last good checkpoint: lower "
                 "--learning_rate or --grad_clip, or raise --warmup_iters, and resume from there", status=1)
        row = dict(iter=it, tokens=state["tokens"], seconds=round(elapsed, 3), lr=f"{lr:.4g}",
                   train_loss=f"{train_loss:.6f}" if state["loss_count"] else "", grad_norm=f"{norm.item():.4g}",
                   val_loss=f"{val_loss:.6f}" if evaluates else "", tok_per_sec=round(speed),
                   val_bpb=f"{val_loss / math.log(2) * meta['val']['tokens'] / meta['val']['bytes']:.6f}" if evaluates else "",
                   mfu=f"{speed * flops_per_token / peak_flops:.4f}")
        if master:
            with open(log_path, "a", encoding="utf-8", newline="") as f:
                csv.DictWriter(f, COLUMNS, lineterminator="\n").writerow(row)
        eta = time.strftime("%H:%M:%S", time.gmtime(elapsed / progress * (1 - progress))) if 0 < progress < 1 else "-"
        say(f"iter {it:6d} | train {train_loss:7.4f} | val {val_loss if evaluates else math.nan:7.4f} | lr {lr:.2e} | "
            f"norm {norm.item():6.3f} | {speed:9,.0f} tok/s | mfu {100 * speed * flops_per_token / peak_flops:4.1f}% | eta {eta}")
        if wandb_log and master:
            wandb.log({k: float(v) for k, v in row.items() if v != ""}, step=it)
        if it % log_interval == 0:
            state["loss_count"] = 0
            state["loss_sum"] = 0.0
            loss_sum.zero_()
        state["seconds"] = elapsed
        if evaluates and master:
            if val_loss < state["best_val_loss"]:
                state["best_val_loss"] = val_loss
                save("best.pt")
            save("ckpt.pt")
        seconds_before, clock = elapsed, time.perf_counter()
        row_tokens, row_seconds = state["tokens"], elapsed
    if done:
        break

    torch.manual_seed(seed + 1 + it * world_size + rank)  # dropout depends on the iteration alone: nothing to save
    state["position"], loss, norm = train_step(state["position"], lr)
    loss_sum += loss
    state["loss_count"] += 1
    state["iter"] += 1
    state["tokens"] += tokens_per_iter

# ------------------------------------------------------------------------------------------------------------
# the end: the curve and a sample

if master:
    say(f"{state['iter']} iterations, {state['tokens'] / 1e6:.1f} M tokens in {state['seconds']:.0f} s of training; "
        f"validation loss {val_loss:.4f} nats a token; checkpoint in {ckpt_path}")
    plot_log(log_path, os.path.join(out_dir, "loss.png"))
    if stopped:
        say(f"stopped by a signal; continue with: python train.py {' '.join(sys.argv[1:])} --init_from=resume")
    elif sample_tokens:
        say(f"a sample (python sample.py --out_dir={out_dir} makes more):\n")
        raw_model.eval()
        tokens = generate(raw_model, [[meta["eot_id"]]], sample_tokens, top_k=200, seed=seed)
        for piece in stream_text(build_tokenizer(meta), (token for token, in tokens)):
            print(piece, end="", flush=True)
        print()
if ddp:
    dist.destroy_process_group()
