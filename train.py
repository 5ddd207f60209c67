"""
Train a language model: on a laptop, a GPU, or many (arXiv 2409.01482, sections 2 and 4).

    python train.py config/mixer_tiny.py                         # two cores, two minutes
    python train.py config/mixer_tiny.py --model_type=llama      # any key below or in model.py's ModelConfig
    python train.py config/mixer_tiny.py --init_from=resume      # go on where it stopped, exactly
    torchrun --nproc_per_node=4 train.py config/mixer_tinystories.py --gradient_accumulation_steps=4

Writes into out_dir: ckpt.pt (the last), best.pt (lowest validation loss), log.csv, config.json and loss.png.
"""
import csv
import json
import math
import os
import shlex
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, fields

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from common import (autocast, choose_device, choose_dtype, clip_gradients, measure_peak_flops, peak_memory_mb,
                    replacing)
from configurator import configure, fail
from dataset import (build_tokenizer, get_batch, load_meta, load_tokens, prepare_missing, stream_text,
                     training_windows, validation_windows)
from figures import plot_logs
from model import ModelConfig
from objectives import OBJECTIVES
from runs import load_checkpoint, start_log
from sample import generate

# defaults: change them by a config file and by --key=value
out_dir = "out"                   # folder of the run
eval_interval = 500               # iterations between evaluations, each followed by a checkpoint
eval_iters = 20                   # an evaluation reads 32 * eval_iters windows, always the same
log_interval = 10                 # iterations between lines of the log
objective = "causal"              # causal: the next token | autoencode | bidirectional (objectives.py)
init_from = "scratch"             # scratch | resume | path of a checkpoint whose weights are the start
dataset = "python"                # folder in data_dir, made by prepare.py
data_dir = "data"                 # where datasets are
batch_size = 32                   # B: windows of block_size tokens in a forward pass
gradient_accumulation_steps = 1   # forward passes an iteration, over all processes
max_iters = 100_000               # the run ends when the first of three budgets is used up; 0: no limit
max_tokens = 0                    # tokens to train on; 0: no limit
max_seconds = 0.0                 # seconds of training, not of compilation and evaluation; 0: no limit
learning_rate = 5e-4              # peak of the schedule
weight_decay = 0.1                # of matrices and embeddings
beta1 = 0.9                       # AdamW
beta2 = 0.95                      # AdamW
grad_clip = 1.0                   # largest norm of the gradient; 0.0: no clipping
decay_lr = True                   # False keeps learning_rate after the warm-up
schedule = "cosine"               # cosine | linear, from learning_rate down to min_lr
warmup_iters = 500                # iterations of linear rise to learning_rate
lr_decay_iters = 0                # iteration at which min_lr is reached; 0: the end of the budget
min_lr = 0.0                      # learning rate at the end
device = "auto"                   # auto | cpu | cuda | cuda:1 | mps
dtype = "auto"                    # auto | float32 | bfloat16 | float16, of the matmuls; weights are float32
compile = True                    # torch.compile; where it does not work, the run goes on without
backend = "auto"                  # of torchrun: auto | nccl | gloo
seed = 1337                       # of initial weights, order of the data and dropout
sample_tokens = 200               # tokens of sample text printed at the end
wandb_log = False                 # log to Weights & Biases too (pip install wandb)
# end of defaults
here = os.path.dirname(os.path.abspath(__file__))
config = configure(sys.argv[1:], __file__, os.path.join(here, "model.py"))
globals().update(config)
signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, Ctrl-C just ends
for key in "eval_interval", "eval_iters", "log_interval", "batch_size", "gradient_accumulation_steps":
    if config[key] < 1:
        fail(f"{key} must be 1 or more; got {config[key]}")
if min(max_iters, max_tokens, max_seconds) < 0 or not max(max_iters, max_tokens, max_seconds):
    fail("give the run a budget: max_iters, max_tokens or max_seconds above 0, and none below")
if not 0 < learning_rate < math.inf:
    fail(f"learning_rate must be a positive number; got {learning_rate}")
for key, choices in ("schedule", ("cosine", "linear")), ("objective", OBJECTIVES):
    if config[key] not in choices:
        fail(f"{key} must be {' or '.join(choices)}; got {config[key]!r}")

# ------------------------------------------------------------------------------------------------------------
# processes and device; torchrun sets RANK, LOCAL_RANK and WORLD_SIZE

rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
ddp, master = world_size > 1, rank == 0
if ddp and device in ("auto", "cuda") and torch.cuda.is_available():
    device = f"cuda:{os.environ['LOCAL_RANK']}"
device = choose_device(device)
dtype = choose_dtype(dtype, device)
dtype_name = str(dtype).removeprefix("torch.")
if device.type == "cuda":
    torch.cuda.set_device(device)
if gradient_accumulation_steps % world_size:
    fail(f"gradient_accumulation_steps {gradient_accumulation_steps} is no multiple of {world_size} ranks")
if ddp:
    import torch.distributed.nn  # noqa: F401 - imported later, its default arguments would hold the group
    dist.init_process_group(("nccl" if device.type == "cuda" else "gloo") if backend == "auto" else backend)
torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32 on CUDA


def say(message):
    if master:
        print(message, flush=True)


def across_ranks(values, op=dist.ReduceOp.SUM):
    """Floats reduced over all processes, so that all of them decide alike."""
    if not ddp:
        return values
    values = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(values, op)
    return values.tolist()


# ------------------------------------------------------------------------------------------------------------
# data

folder = os.path.join(data_dir, dataset)
if dataset == "python" and master:
    prepare_missing(folder, "--dataset=python")
if ddp:
    dist.barrier()
meta = load_meta(folder)
data = {split: load_tokens(folder, split, meta) for split in ("train", "val")}
block_size = config["block_size"]
for split, tokens in data.items():
    if len(tokens) <= 2 * block_size:
        fail(f"{folder}/{split}.bin has {len(tokens)} tokens, too few for block_size {block_size}: prepare "
             "more text, or choose a smaller --block_size")
tokens_per_iter = gradient_accumulation_steps * batch_size * block_size

# ------------------------------------------------------------------------------------------------------------
# model and optimizer: new, or as a checkpoint left them

try:
    model_config = ModelConfig(**{f.name: config[f.name] for f in fields(ModelConfig) if f.name in config},
                               vocab_size=meta["vocab_size"])
except ValueError as e:
    fail(e)
torch.manual_seed(seed)
raw_model = OBJECTIVES[objective](model_config).to(device)
optimizer = raw_model.configure_optimizers(weight_decay, learning_rate, (beta1, beta2))
scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

ckpt_path, log_path = os.path.join(out_dir, "ckpt.pt"), os.path.join(out_dir, "log.csv")
# What changes from one iteration to the next, besides weights and optimizer. position: where the order of the
# data stands; loss_sum and loss_count: of the iterations since the last line of the log.
state = {"iter": 0, "tokens": 0, "seconds": 0.0, "position": (0, 0), "loss_sum": 0.0, "loss_count": 0,
         "val_loss": math.nan, "best_val_loss": math.inf}
if init_from != "scratch":
    path = ckpt_path if init_from == "resume" else os.path.expanduser(init_from)
    checkpoint = load_checkpoint(path)
    known = {"objective": "causal"} | checkpoint["config"] | asdict(ModelConfig(**checkpoint["model_config"]))
    for key, value in (asdict(model_config) | {"objective": objective}).items():
        if known[key] != value and key != "dropout":
            fail(f"{path} was trained with {key}={known[key]}, not {value}: use its config and dataset")
    if checkpoint["meta"]["ranks"] != meta["ranks"]:
        fail(f"{path} was trained with another tokenizer than that of {folder}")
    raw_model.load_state_dict(checkpoint["model"])
    if init_from == "resume":
        optimizer.load_state_dict(checkpoint["optimizer"])
        scaler.load_state_dict(checkpoint["scaler"])
        state |= checkpoint["state"]
    del checkpoint  # or its copy of the weights stays in memory
start_iter = state["iter"]
flops_per_token = 3 * raw_model.estimate_flops()  # forward, and twice that backward
peak_flops = measure_peak_flops(device, dtype) * world_size
say("\n".join(f"{role:12}{n:>12,} parameters" for role, n in raw_model.parameter_counts().items()))
say(f"{model_config.model_type} on {device} in {dtype_name}: {flops_per_token / 1e6:.1f} MFLOP a token, "
    f"{tokens_per_iter:,} tokens an iteration; a large matmul reaches {peak_flops / 1e12:.2f} TFLOP/s here")

# ------------------------------------------------------------------------------------------------------------
# log: a line on the terminal and a row in log.csv, of which a resumed run keeps what its checkpoint knows of

COLUMNS = "iter,tokens,seconds,train_loss,val_loss,val_bpb,lr,grad_norm,tok_per_sec,mfu".split(",")
if master:
    start_log(out_dir, COLUMNS, keep_until=start_iter if init_from == "resume" else None)
    with replacing(os.path.join(out_dir, "config.json"), "w") as f:
        used = dict(device=str(device), dtype=dtype_name, processes=world_size, torch=torch.__version__)
        json.dump(config | asdict(model_config) | used, f, indent=1)
if wandb_log and master:
    try:
        import wandb
    except ImportError:
        fail("wandb_log needs the package wandb: pip install wandb")
    wandb.init(project="masked-mixers", name=out_dir, config=config)


def log(row, progress):
    """row: {column: number}, None where there is no value. Terminal, log.csv and wandb."""
    val = f"{row['val_loss']:.4f} ({row['val_bpb']:.3f} bits a byte)" if row["val_loss"] else ""
    eta = row["seconds"] / progress - row["seconds"] if progress else 0
    train = f"{row['train_loss']:7.4f}" if row["train_loss"] else "      -"
    say(f"iter {row['iter']:6d} | train {train} | lr {row['lr']:.2e} | "
        f"norm {row['grad_norm']:6.3f} | {row['tok_per_sec']:9,.0f} tok/s | mfu {100 * row['mfu']:4.1f}% | "
        f"eta {time.strftime('%H:%M:%S', time.gmtime(eta))}" + (f" | val {val}" if val else ""))
    if master:
        try:
            with open(log_path, "a", encoding="utf-8", newline="") as f:
                csv.writer(f, lineterminator="\n").writerow(
                    "" if row[key] is None else f"{row[key]:.7g}" for key in COLUMNS)
        except OSError as e:
            fail(f"cannot write {log_path}: {e.strerror.lower()}", status=1)
    if wandb_log and master:
        wandb.log({key: value for key, value in row.items() if value is not None}, step=row["iter"])


# ------------------------------------------------------------------------------------------------------------
# gradients, optimizer step, evaluation, saving

def forward_backward(position):
    """Gradients of the iteration whose windows begin at `position`; returns the next position and the mean
    loss, a tensor: nothing waits for the device. Processes share the same windows, whatever their number."""
    starts, position = training_windows(len(data["train"]), block_size, seed, position,
                                        gradient_accumulation_steps * batch_size)
    micro_batches = [starts[i:i + batch_size] for i in range(0, len(starts), batch_size)][rank::world_size]
    loss_sum = torch.zeros((), device=device)
    for i, micro_batch in enumerate(micro_batches):
        idx, targets = get_batch(data["train"], micro_batch, block_size, device)
        last = i == len(micro_batches) - 1  # processes exchange gradients once, in the last backward pass
        with nullcontext() if last or not ddp else model.no_sync():
            with autocast(device, dtype):
                loss = model(idx, targets, return_logits=False)[1] / len(micro_batches)
            scaler.scale(loss).backward()
        loss_sum += loss.detach()
    return position, loss_sum


def optimizer_step(lr):
    """Clip, update, forget the gradients; returns their norm before clipping, a tensor."""
    scaler.unscale_(optimizer)
    norm = clip_gradients(raw_model, grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


@torch.no_grad()
def evaluate():
    """Mean loss, in nats a token, over the fixed validation windows, shared among the processes."""
    model.eval()
    starts = validation_windows(len(data["val"]), block_size, 32 * eval_iters)[rank::world_size].tolist()
    total = 0.0
    for i in range(0, len(starts), batch_size):
        batch = starts[i:i + batch_size]
        filled = batch + [0] * (batch_size - len(batch))  # or the last, smaller batch would be compiled anew
        idx, targets = get_batch(data["val"], filled, block_size, device)
        targets = torch.where(torch.arange(batch_size, device=device)[:, None] < len(batch), targets, -1)
        with autocast(device, dtype):
            total += model(idx, targets, return_logits=False)[1].item() * len(batch)
    model.train()
    total, count = across_ranks([total, len(starts)])
    return total / count


def save(name):
    with replacing(os.path.join(out_dir, name)) as f:
        torch.save({"model": raw_model.state_dict(), "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(), "state": state, "model_config": asdict(model_config),
                    "config": config, "meta": meta, "peak_memory_mb": peak_memory_mb(device)}, f)


def learning_rate_at(it, progress):
    """Warm-up, then decay to min_lr; progress is the share of the budget that is used, 0 to 1."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / warmup_iters
    if not decay_lr:
        return learning_rate
    progress = min(it / lr_decay_iters if lr_decay_iters else progress, 1.0)
    share = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return min_lr + (learning_rate - min_lr) * share


# ------------------------------------------------------------------------------------------------------------
# compilation, before the clock starts: gradients that nobody uses, and one evaluation

distribute = DistributedDataParallel if ddp else lambda module: module
model = distribute(torch.compile(raw_model) if compile else raw_model)
clock = time.perf_counter()
try:
    forward_backward(state["position"])
    evaluate()
    say(f"ready in {time.perf_counter() - clock:.0f} s")
except torch.OutOfMemoryError:
    fail("out of memory: lower --batch_size and raise --gradient_accumulation_steps by the same factor", 1)
except Exception as e:  # no C++ compiler, an unsupported platform: torch raises many types here
    if not compile:
        raise
    say(f"torch.compile does not work here ({type(e).__name__}): going on without it, slower")
    model = distribute(raw_model)
optimizer.zero_grad(set_to_none=True)

# ------------------------------------------------------------------------------------------------------------
# the loop; Ctrl-C or SIGTERM end it after the iteration, with a checkpoint, and a second one at once

caught = []


def catch(number, frame):
    caught.append(number)
    signal.signal(number, signal.SIG_DFL)


signal.signal(signal.SIGINT, catch)
signal.signal(signal.SIGTERM, catch)
loss_sum, norm = torch.tensor(state["loss_sum"], device=device), torch.zeros(())
clock, row_tokens, row_seconds = time.perf_counter(), state["tokens"], state["seconds"]
while True:
    it = state["iter"]
    seconds, stopped = across_ranks([state["seconds"] + time.perf_counter() - clock, float(bool(caught))],
                                    dist.ReduceOp.MAX)
    progress = max(used / budget for used, budget in
                   ((it, max_iters), (state["tokens"], max_tokens), (seconds, max_seconds)) if budget)
    lr = learning_rate_at(it, progress)
    done = progress >= 1 or stopped
    # a resumed run finds its first evaluation in the log already, be it the last one
    evaluates = (done or it % eval_interval == 0) and (it > start_iter or init_from != "resume")

    if evaluates or it % log_interval == 0 and it > start_iter:
        state["loss_sum"] = loss_sum.item()  # waits for the device, so that the clock is right
        state["seconds"] += time.perf_counter() - clock  # stands still while the model is evaluated and saved
        train_loss, = across_ranks([state["loss_sum"] / world_size])
        train_loss = train_loss / state["loss_count"] if state["loss_count"] else None
        val_loss = evaluate() if evaluates else None
        if not math.isfinite(train_loss or 0) or not math.isfinite(val_loss or 0):
            fail(f"the loss is not finite at iteration {it}; {out_dir} keeps the last good checkpoint: "
                 "resume it with a lower --learning_rate, or train anew with a longer --warmup_iters", 1)
        speed = (state["tokens"] - row_tokens) / max(state["seconds"] - row_seconds, 1e-9)
        bpb = val_loss / math.log(2) * meta["val"]["tokens"] / meta["val"]["bytes"] if evaluates else None
        log(dict(iter=it, tokens=state["tokens"], seconds=state["seconds"], train_loss=train_loss,
                 val_loss=val_loss, val_bpb=bpb, lr=lr, grad_norm=norm.item(), tok_per_sec=speed,
                 mfu=speed * flops_per_token / peak_flops), min(progress, 1))
        row_tokens, row_seconds = state["tokens"], state["seconds"]
        if it % log_interval == 0:
            state["loss_sum"], state["loss_count"] = 0.0, 0
            loss_sum.zero_()
        if evaluates and master:
            state |= {"val_loss": val_loss, "best_val_loss": min(val_loss, state["best_val_loss"])}
            if val_loss == state["best_val_loss"]:
                save("best.pt")
            save("ckpt.pt")
        clock = time.perf_counter()
    if done:
        break

    torch.manual_seed(seed + 1 + it * world_size + rank)  # of dropout; by iteration: no state to save
    state["position"], loss = forward_backward(state["position"])
    norm = optimizer_step(lr)
    loss_sum += loss
    state["loss_count"] += 1
    state["iter"] += 1
    state["tokens"] += tokens_per_iter

# ------------------------------------------------------------------------------------------------------------
# the end: the curve and a sample

if master:
    say(f"{state['iter']} iterations, {state['tokens'] / 1e6:.1f} M tokens, {state['seconds']:.0f} s of "
        f"training; validation loss {state['val_loss']:.4f} nats a token; checkpoint in {ckpt_path}")
    plot_logs({"": log_path}, os.path.join(out_dir, "loss.png"))
    if stopped:
        arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--init_from")]
        say(f"stopped by a signal; go on with: python train.py {shlex.join(arguments)} --init_from=resume")
    elif sample_tokens and objective == "causal":
        say(f"a sample (more: python sample.py --out_dir={shlex.quote(out_dir)}):\n")
        raw_model.eval()
        tokens = generate(raw_model, [[meta["eot_id"]]], sample_tokens, 0.8, top_k=200, seed=seed)
        say("".join(stream_text(build_tokenizer(meta), (token for token, in tokens))))
if ddp:
    dist.barrier()  # ranks leave together: one that is still drawing would lose its connections
    del model  # it holds the group, whose threads must not outlive the interpreter: they would abort
    dist.destroy_process_group()
if stopped:
    raise SystemExit(128 + (caught[0] if caught else signal.SIGTERM))
