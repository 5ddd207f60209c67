"""
Train a language model on a laptop, on one GPU, or on many (arXiv 2409.01482, sections 2 and 4).

    python train.py config/mixer_tiny.py                         # two cores, a minute or two
    python train.py config/mixer_tiny.py --toeplitz=true         # any key below, or in model.py's ModelConfig
    python train.py config/mixer_tiny.py --init_from=resume      # go on where it stopped, exactly
    python train.py config/mixer_tiny.py --eval_only=true        # evaluate a finished run
    torchrun --nproc_per_node=4 train.py config/mixer_tinystories.py --gradient_accumulation_steps=4

It writes into out_dir: ckpt.pt (the last), best.pt (lowest validation loss), log.csv, config.json and loss.png.
"""
import json
import math
import os
import shlex
import time
from contextlib import nullcontext
from dataclasses import asdict
from types import SimpleNamespace

from configurator import run_script, share_the_cpu

if __name__ == "__main__":
    share_the_cpu()  # before torch is imported

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lib.data import (build_tokenizer, document_starts, load_meta, load_tokens, prepare_missing, stream_text,
                      text_sums, training_windows, validation_windows)
from lib.device import (across_ranks, autocast, compile_model, dtype_name, join_processes, leave_processes,
                        measure_peak_flops, peak_memory_mb, say, setup, uncompile_model)
from lib.objectives import build_model, recallable, token_losses
from lib.plots import plot_log
from lib.runs import (StopSignals, append_row, build_config, load_checkpoint, model_checksum, replacing,
                      restore_optimizer, resume_command, save_checkpoint, start_log, used_settings)
from model import MaskedConv

# defaults: change them by a config file and by --key=value
out_dir = "out/{model_type}"      # folder of the run; {model_type} stands for the name of the architecture
eval_interval = 500               # [1, inf) iterations between evaluations, each followed by a checkpoint
eval_iters = 20                   # [1, inf) an evaluation reads 32 * eval_iters windows, always the same ones
keep_every = 0                    # [0, inf) iterations between evaluated checkpoints iter_N.pt that stay; 0: none
eval_only = False                 # evaluate the checkpoint in out_dir, and end
log_interval = 10                 # [1, inf) iterations between lines of the log
objective = "causal"              # causal | autoencode | bidirectional: see lib/objectives.py
init_from = "scratch"             # scratch, resume, or a checkpoint or run whose weights are the start
dataset = "python"                # folder in data_dir, made by prepare.py
data_dir = "data"                 # folder of the datasets
verify = False                    # read and check all of the dataset at the start, not a sample of it
windows = "packed"                # packed | document: text without gaps, or one document from its beginning, padded
batch_size = 32                   # [1, inf) B: windows of block_size tokens in a forward pass
gradient_accumulation_steps = 1   # [1, inf) forward passes per iteration, over all processes
max_iters = 100_000               # [0, inf) the run ends when the first of three budgets is used up; 0: no limit
max_tokens = 0                    # [0, inf) tokens to train on; 0: no limit
max_seconds = 0.0                 # [0, inf) seconds of training, without compilation and evaluation; 0: no limit
optimizer = "adamw"               # adamw | muon: Muon for matrices, and AdamW for embeddings, head and vectors
learning_rate = 5e-4              # (0, inf) peak of the learning rate
weight_decay = 0.1                # [0, inf) decay of matrices and embeddings
beta1 = 0.9                       # [0, 1) AdamW: memory of the gradient
beta2 = 0.95                      # [0, 1) AdamW: memory of its square
grad_clip = 1.0                   # [0, inf) largest norm of the gradient; 0: no clipping
decay_lr = True                   # false keeps learning_rate after the warm-up
schedule = "cosine"               # cosine | linear: from learning_rate down to min_lr
warmup_iters = 500                # [0, inf) iterations of linear rise to learning_rate
lr_decay_iters = 0                # [0, inf) iteration at which min_lr is reached; 0: the end of the budget
min_lr = 0.0                      # [0, inf) learning rate at the end
device = "auto"                   # auto, cpu, cuda, cuda:1 or mps
dtype = "auto"                    # auto | float32 | bfloat16 | float16: format of the matmuls; weights stay float32
compile = True                    # torch.compile; where it does not work, the run goes on without it
fast = True                       # faster equivalents of four functions of model.py (lib/fast.py)
backend = "auto"                  # auto | nccl | gloo: how the processes of torchrun exchange gradients
seed = 1337                       # [0, inf) fixes initial weights, order of the data and dropout
sample_tokens = 200               # [0, inf) tokens of sample text printed at the end
wandb_log = False                 # log to Weights & Biases too (pip install wandb)
# end of defaults

COLUMNS = ("iter,tokens,seconds,train_loss,val_loss,val_bpb,lr,grad_norm,tok_per_sec,mfu,"
           "recall_loss,other_loss,recall_accuracy").split(",")


# ------------------------------------------------------------------------------------------------------------
# one training step


def get_batch(data, starts, block_size, device, end_of_text=None):
    """Token ids idx and, shifted by one, targets: both (len(starts), block_size), int64, on `device`.

    With the id end_of_text, a window ends with its document; behind it stand that id and targets of -1. The last
    document may be shorter than a window, so that places behind the end of the data are clipped.
    """
    places = np.add.outer(starts, np.arange(block_size + 1)).clip(max=len(data) - 1)      # (B, T + 1)
    windows = torch.from_numpy(data[places].astype(np.int64))
    if device.type == "cuda":
        windows = windows.pin_memory()  # so that the copy runs beside the computation
    windows = windows.to(device, non_blocking=device.type == "cuda")
    idx, targets = windows[:, :-1], windows[:, 1:]
    if end_of_text is not None:
        is_over = (idx == end_of_text).cumsum(dim=1) > 0                                  # (B, T)
        idx, targets = idx.masked_fill(is_over, end_of_text), targets.masked_fill(is_over, -1)
    return idx, targets


def forward_backward(run, starts, exchange=True):
    """Leave the gradients of the windows at `starts` in the model; returns the mean loss, a tensor.

    The tensor is not read here, so that nothing waits for the device. Each process takes its share of the windows.
    They exchange gradients once, in the last backward pass, unless `exchange` is false. Every forward pass counts
    alike, even if documents shorter than a window leave it fewer targets than another one has.
    """
    B, T = run.args.batch_size, run.model_config.block_size
    micro_batches = [starts[i:i + B] for i in range(run.rank * B, len(starts), run.world_size * B)]
    loss_sum = torch.zeros((), device=run.device)
    for i, micro_batch in enumerate(micro_batches):
        idx, targets = get_batch(run.data["train"], micro_batch, T, run.device, run.end_of_text)
        is_last = i == len(micro_batches) - 1
        skips_exchange = run.world_size > 1 and not (exchange and is_last)
        with run.model.no_sync() if skips_exchange else nullcontext():
            with autocast(run.device, run.dtype):
                loss = run.model(idx, targets, return_logits=False)[1] / len(micro_batches)
            run.scaler.scale(loss).backward()
        loss_sum += loss.detach()
    return loss_sum


class MuonAndAdamW(torch.optim.Muon):
    """Muon (arXiv 2502.16982) for the matrices of the blocks, and the given AdamW for all other parameters.

    PyTorch's Muon takes matrices only: it gets the weight (k, T, T) of a convolution as k views, which share its
    memory. A Toeplitz weight (k, T) is no matrix. The rule match_rms_adamw makes Muon's steps as large as AdamW's.
    """

    def __init__(self, model, adamw):
        convs = [m for m in model.modules() if isinstance(m, MaskedConv) and not m.toeplitz]
        linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.lm_head]
        self.weights = [m.weight for m in convs + linears]
        self.masked = [conv.weight for conv in convs if conv.causal]
        self.views = [view for weight in self.weights for view in weight.detach().view(-1, *weight.shape[-2:])]
        self.adamw, options = adamw, adamw.param_groups[0]
        super().__init__(self.views, options["lr"], options["weight_decay"], adjust_lr_fn="match_rms_adamw")
        for group in adamw.param_groups:
            self.add_param_group(group)

    @torch.no_grad()
    def step(self):
        grads = [grad for weight in self.weights for grad in weight.grad.view(-1, *weight.shape[-2:])]
        for view, grad in zip(self.views, grads):
            view.grad = grad
        for weight in self.weights:
            weight.grad = None  # AdamW passes over a parameter without a gradient
        self.adamw.param_groups, self.adamw.state = self.param_groups[1:], self.state  # load_state_dict replaces both
        self.adamw.step()
        self.adamw.zero_grad()  # so that Muon passes over its parameters
        super().step()
        # Muon's update is dense, but above the diagonal, where the gradient is 0, it lowers no loss. Masking the
        # weight is the same as masking the update, because the weight was 0 there before.
        for weight in self.masked:
            weight.tril_()


def optimizer_step(model, optimizer, scaler, lr, grad_clip):
    """Clip the gradients, update the weights, drop the gradients; returns their norm before clipping, a tensor."""
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.step(optimizer)  # in float16, it skips the step after a gradient that is not finite
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


def learning_rate_at(it, progress, args):
    """The learning rate of iteration `it`: a linear warm-up, then a decay to min_lr.

    progress is the used share of the budget, 0 to 1. The warm-up counts as used, so that the decay begins a little
    below learning_rate.
    """
    if it < args.warmup_iters:
        return args.learning_rate * (it + 1) / args.warmup_iters
    if not args.decay_lr:
        return args.learning_rate
    if args.lr_decay_iters:
        progress = min(it / args.lr_decay_iters, 1.0)
    share = 1 - progress if args.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return args.min_lr + (args.learning_rate - args.min_lr) * share


# ------------------------------------------------------------------------------------------------------------
# evaluation, log, checkpoints


@torch.no_grad()
def sum_measures(run, starts):
    """Five sums over validation windows: the loss and the number of all targets, and of the recallable ones the loss,
    their number, and how many of them are right."""
    model, B, T = run.raw_model, run.args.batch_size, run.model_config.block_size
    model.eval()
    sums = np.zeros(5)
    for i in range(0, len(starts), B):
        idx, targets = get_batch(run.data["val"], starts[i:i + B], T, run.device, run.end_of_text)
        recalled = recallable(idx, targets)                                               # (B, T)
        if run.args.objective == "autoencode":
            targets = idx.masked_fill(targets < 0, -1)
        with autocast(run.device, run.dtype):
            losses, right = token_losses(model, idx, targets)                             # (B, T) each
        measures = losses, targets >= 0, losses * recalled, recalled, right & recalled
        sums += [measure.sum().item() for measure in measures]
    model.train()
    return sums.tolist()


def evaluate(run):
    """Columns of the log: means over the fixed validation windows, which the processes share.

    Losses are in nats per token. A causal model has some for recallable and for other targets, if there are any.
    """
    starts = validation_windows(len(run.data["val"]), run.model_config.block_size, 32 * run.args.eval_iters,
                                run.documents["val"])
    starts = starts[run.rank::run.world_size].tolist()
    loss, n, recall_loss, n_recalled, n_right = across_ranks(sum_measures(run, starts))
    measures = {"val_loss": loss / n}
    if run.args.objective == "causal" and n_recalled:
        measures |= {"recall_loss": recall_loss / n_recalled, "recall_accuracy": n_right / n_recalled}
    if run.args.objective == "causal" and n > n_recalled:
        measures["other_loss"] = (loss - recall_loss) / (n - n_recalled)
    return measures


def save(run, keeps):
    """Write all that the run needs to go on exactly: ckpt.pt, best.pt if it is the best, iter_N.pt if it `keeps` it."""
    state = run.state
    is_best = state["val_loss"] <= state["best_val_loss"]
    state["best_val_loss"] = min(state["val_loss"], state["best_val_loss"])
    checkpoint = {"made_by": "train.py", "model": run.raw_model.state_dict(), "optimizer": run.optimizer.state_dict(),
                  "scaler": run.scaler.state_dict(), "state": state, "model_config": asdict(run.model_config),
                  "config": vars(run.args), "meta": run.meta, "model_py": run.model_py,
                  "peak_memory_mb": peak_memory_mb(run.device)}
    save_checkpoint(checkpoint, run.out_dir, is_best, keeps)


def show(row, progress):
    """Print a line of the log; progress, the used share of the budget, tells how long the rest takes."""
    left = int(row["seconds"] / progress - row["seconds"]) if progress else 0
    line = (f"iter {row['iter']:6d} | train {row['train_loss'] or math.nan:7.4f} | lr {row['lr']:.2e} | "
            f"norm {row['grad_norm']:6.3f} | {row['tok_per_sec']:9,.0f} tok/s | mfu {100 * row['mfu']:4.1f}% | "
            f"eta {left // 3600:02d}:{left // 60 % 60:02d}:{left % 60:02d}")
    if row.get("val_loss"):
        line += f" | val {row['val_loss']:.4f} ({row['val_bpb']:.3f} bits per byte)"
        if "recall_accuracy" in row:
            line += f", {100 * row['recall_accuracy']:.1f}% of recallable tokens right"
    print(line, flush=True)


def log(run, lr, norm, progress, speed, evaluates):
    """Write a row of the log, after an evaluation if it is due. Raises FloatingPointError if the loss is not finite."""
    state = run.state
    train_loss, = across_ranks([state["loss_sum"] / run.world_size])
    train_loss = train_loss / state["loss_count"] if state["loss_count"] else None
    measures = evaluate(run) if evaluates else {}
    val_loss = measures.get("val_loss")
    if not math.isfinite(train_loss or 0) or not math.isfinite(val_loss or 0):
        raise FloatingPointError(
            f"the loss is not finite at iteration {state['iter']}; {run.out_dir} keeps the last good checkpoint: "
            "resume it with a lower --learning_rate, or train anew with a longer --warmup_iters")
    if run.rank != 0:
        return
    if evaluates:
        state["val_loss"] = val_loss
        text = run.meta["val"]
        measures["val_bpb"] = val_loss / math.log(2) * text["tokens"] / text["bytes"]
    row = measures | dict(iter=state["iter"], tokens=state["tokens"], seconds=state["seconds"], train_loss=train_loss,
                          lr=lr, grad_norm=norm.item(), tok_per_sec=speed,
                          mfu=speed * run.flops_per_token / run.peak_flops)
    show(row, progress)
    append_row(os.path.join(run.out_dir, "log.csv"), [row.get(column) for column in COLUMNS])
    if run.wandb:
        run.wandb.log({key: value for key, value in row.items() if value is not None}, step=row["iter"])


# ------------------------------------------------------------------------------------------------------------
# the loop


def train(run, stop):
    """Train until a budget is used up, or until a signal stops the run; returns the signal's number or 0."""
    args, state = run.args, run.state
    windows_per_iter = args.gradient_accumulation_steps * args.batch_size
    loss_sum, norm = torch.tensor(state["loss_sum"], device=run.device), torch.zeros(())
    clock, first_iter = time.perf_counter(), state["iter"]
    logged_tokens, logged_seconds = state["tokens"], state["seconds"]
    while True:
        it = state["iter"]
        seconds, caught = across_ranks([state["seconds"] + time.perf_counter() - clock, float(stop.caught)],
                                       dist.ReduceOp.MAX)
        used = [(it, args.max_iters), (state["tokens"], args.max_tokens), (seconds, args.max_seconds)]
        progress = min(1.0, max(amount / budget for amount, budget in used if budget))
        lr = learning_rate_at(it, progress, args)
        done = progress >= 1 or caught
        keeps = args.keep_every > 0 and it % args.keep_every == 0
        evaluates = (done or keeps or it % args.eval_interval == 0) and (it > first_iter or not run.resumed)

        if evaluates or (it % args.log_interval == 0 and it > first_iter):
            state["loss_sum"] = loss_sum.item()  # waits for the device, so that the clock is right
            state["seconds"] += time.perf_counter() - clock  # stands still during evaluation and saving
            speed = (state["tokens"] - logged_tokens) / max(state["seconds"] - logged_seconds, 1e-9)
            logged_tokens, logged_seconds = state["tokens"], state["seconds"]
            log(run, lr, norm, progress, speed, evaluates)
            if it % args.log_interval == 0:
                state["loss_sum"], state["loss_count"] = 0.0, 0
                loss_sum.zero_()
            if evaluates and run.rank == 0:
                save(run, keeps)
            across_ranks([0.0])  # all meet here, so that no clock counts the saving of rank 0
            clock = time.perf_counter()
        if done:
            return int(caught)

        torch.manual_seed(args.seed + 1 + it * run.world_size + run.rank)  # for dropout, without a state to save
        starts, state["position"] = training_windows(len(run.data["train"]), run.model_config.block_size, args.seed,
                                                     state["position"], windows_per_iter, run.documents["train"])
        loss_sum += forward_backward(run, starts)
        norm = optimizer_step(run.raw_model, run.optimizer, run.scaler, lr, args.grad_clip)
        state["iter"] += 1
        state["loss_count"] += 1
        state["tokens"] += windows_per_iter * run.model_config.block_size  # padding included


# ------------------------------------------------------------------------------------------------------------
# setting up a run


def check_settings(args, world_size):
    """Settings that only make sense together. Raises ValueError."""
    if not max(args.max_iters, args.max_tokens, args.max_seconds):
        raise ValueError("give the run a budget: max_iters, max_tokens or max_seconds above 0")
    if args.gradient_accumulation_steps % world_size:
        raise ValueError(f"gradient_accumulation_steps {args.gradient_accumulation_steps} is no multiple of "
                         f"{world_size} processes")
    if args.max_iters and args.warmup_iters > args.max_iters:
        say(f"warmup_iters {args.warmup_iters} is more than max_iters {args.max_iters}: learning_rate is never reached")


def import_wandb():
    """wandb.init, imported before anything is written. Raises ValueError without the package wandb."""
    try:
        from wandb import init  # a folder named wandb can be imported too, but has no init
    except ImportError:
        raise ValueError("wandb_log needs the package wandb: pip install wandb") from None
    return init


def load_data(folder, block_size, rank, verify=False):
    """(meta, {"train": tokens, "val": tokens}) of a dataset. Raises ValueError if it is too short or damaged."""
    if os.path.basename(folder) == "python" and rank == 0:
        prepare_missing(folder, "--dataset=python")
    across_ranks([0.0])  # the others wait for rank 0
    meta = load_meta(folder)
    check = "all" if verify else "sample"
    if os.environ.get("LOCAL_RANK", "0") != "0":
        check = "none"  # the first process on each machine does it
    data = {split: load_tokens(folder, split, meta, check) for split in ("train", "val")}
    for split, tokens in data.items():
        if len(tokens) <= 2 * block_size:
            raise ValueError(f"{folder}/{split}.bin has {len(tokens)} tokens, too few for block_size {block_size}: "
                             "prepare more text, or choose a smaller --block_size")
    return meta, data


def restore(run, path, resume):
    """Take the weights of a checkpoint; with `resume` also the optimizer and the state of the run.

    Raises ValueError if the checkpoint is of another model or tokenizer.
    """
    checkpoint = load_checkpoint(path, mmap=True)  # or each process would keep its memory
    used, wanted = used_settings(checkpoint), asdict(run.model_config) | {"objective": run.args.objective}
    if resume:
        wanted["optimizer"] = run.args.optimizer
    for key, value in wanted.items():
        if used[key] != value and key != "dropout":
            raise ValueError(f"{path} was trained with {key}={used[key]}, not {value}: use its config and dataset")
    if checkpoint["meta"]["ranks"] != run.meta["ranks"]:
        raise ValueError(f"{path} was trained with another tokenizer than that of {run.args.dataset}")
    run.raw_model.load_state_dict(checkpoint["model"])
    if not resume:
        return
    if checkpoint.get("made_by") != "train.py":
        raise ValueError(f"{path} is a checkpoint of {checkpoint.get('made_by')}: train.py cannot resume it, but "
                         f"start from its weights: --init_from={path}")
    restore_optimizer(run.optimizer, run.scaler, checkpoint)
    changed = [key for key in ("weight_decay", "beta1", "beta2") if used[key] != getattr(run.args, key)]
    if changed:
        say(f"{path} was trained with another {' and '.join(changed)}: it goes on with those of today")
    run.state.update(checkpoint["state"])
    if checkpoint.get("model_py") != run.model_py:
        say(f"model.py has changed since {path} was saved")
        run.model_py = None  # no single version of it makes this run
    if text_sums(checkpoint["meta"]) != text_sums(run.meta):
        say(f"{run.args.dataset} has changed since {path} was saved: its best validation loss does not count")
        run.state["best_val_loss"] = math.inf


def build_run(args):
    """Data, model, optimizer and state of the run that the settings describe, not compiled yet."""
    device, dtype = setup(args.device, args.dtype, args.fast)
    rank, world_size = join_processes(device, args.backend)
    check_settings(args, world_size)
    out_dir = args.out_dir.replace("{model_type}", args.model_type)
    meta, data = load_data(os.path.join(args.data_dir, args.dataset), args.block_size, rank, args.verify)
    end_of_text = meta["eot_id"] if args.windows == "document" else None
    documents = {split: document_starts(tokens, end_of_text) for split, tokens in data.items()}
    model_config = build_config(vars(args), meta["vocab_size"])
    torch.manual_seed(args.seed)
    raw_model = build_model(args.objective, model_config).to(device)
    optimizer = raw_model.configure_optimizers(args.weight_decay, args.learning_rate, (args.beta1, args.beta2))
    if args.optimizer == "muon":
        optimizer = MuonAndAdamW(raw_model, optimizer)
    # The state is what changes from one iteration to the next, besides weights and optimizer. position says where
    # the order of the data stands. loss_sum and loss_count are of the iterations since log_interval was last reached.
    state = {"iter": 0, "tokens": 0, "seconds": 0.0, "position": (0, 0), "loss_sum": 0.0, "loss_count": 0,
             "val_loss": math.nan, "best_val_loss": math.inf}
    run = SimpleNamespace(
        args=args, out_dir=out_dir, device=device, dtype=dtype, rank=rank, world_size=world_size, meta=meta,
        data=data, documents=documents, end_of_text=end_of_text, model_config=model_config, raw_model=raw_model,
        optimizer=optimizer, state=state, scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        wandb=None, model_py=model_checksum(), resumed=args.init_from == "resume",
        flops_per_token=3 * raw_model.estimate_flops())
    if run.resumed or args.eval_only:
        restore(run, os.path.join(out_dir, "ckpt.pt"), resume=True)
    elif args.init_from != "scratch":
        restore(run, os.path.expanduser(args.init_from), resume=False)
    return run


def compile_run(run):
    """Compile the model by a throwaway step, so that compilation is not timed."""
    run.model = run.raw_model
    if run.world_size > 1:
        run.model = DistributedDataParallel(run.raw_model, gradient_as_bucket_view=True)
        run.model.broadcast_buffers = False  # the rotary tables are the same in all processes
    n_windows = run.args.gradient_accumulation_steps * run.args.batch_size

    def use():  # any windows will do; nothing is exchanged, because compilation may fail in one process alone
        forward_backward(run, [0] * n_windows, exchange=False)
    try:
        compile_model(run.raw_model, use, run.args.compile)
    except torch.OutOfMemoryError:
        raise MemoryError("out of memory: lower --batch_size and raise --gradient_accumulation_steps by the same "
                          "factor") from None
    run.optimizer.zero_grad(set_to_none=True)


def start_folder(run):
    """Make the folder of the run, with config.json and log.csv; moves aside a run that is there."""
    start_log(run.out_dir, COLUMNS, keep_until=run.state["iter"] if run.resumed else None)
    used = dict(device=str(run.device), dtype=dtype_name(run.dtype), processes=run.world_size, torch=torch.__version__)
    with replacing(os.path.join(run.out_dir, "config.json"), "w") as f:
        json.dump(vars(run.args) | asdict(run.model_config) | used, f, indent=1)


def finish(run, caught):
    """The end of a run: a summary, the curve, and a sample or the command that goes on."""
    state, args = run.state, run.args
    print(f"{state['iter']} iterations, {state['tokens'] / 1e6:.1f} M tokens, {state['seconds']:.0f} s of training; "
          f"validation loss {state['val_loss']:.4f} nats per token; checkpoint in {run.out_dir}/ckpt.pt")
    plot_log(os.path.join(run.out_dir, "log.csv"), os.path.join(run.out_dir, "loss.png"))
    if caught:
        print(f"stopped by a signal; go on with: {resume_command('train.py')}")
    elif args.sample_tokens and args.objective == "causal":
        uncompile_model(run.raw_model.eval())
        tokenizer = build_tokenizer(run.meta)
        known = run.data["val"][:1].tolist() if args.windows == "document" else []
        start = f" --start={shlex.quote(tokenizer.decode(known))}" if known else ""
        print(f"a sample (more: python sample.py --out_dir={shlex.quote(run.out_dir)}{start}):\n")
        # A document window never has the end-of-text token as its first input, so the model cannot begin with it.
        start = known or [run.meta["eot_id"]]
        steps = run.raw_model.generate([start], args.sample_tokens, 0.8, top_k=200, seed=args.seed,
                                       stop_token=run.end_of_text)
        tokens = known + [token for token, in steps if token != run.end_of_text]
        print("".join(stream_text(tokenizer, tokens)))


def main(args):
    """Train by the settings; returns the run, or None after eval_only.

    Raises SystemExit with 128 + the signal's number if a signal stopped the run.
    """
    wandb_init = import_wandb() if args.wandb_log else None
    run = build_run(args)
    if args.eval_only:
        say(f"validation loss {evaluate(run)['val_loss']:.4f} nats per token")
        return leave_processes()
    run.peak_flops = measure_peak_flops(run.device, run.dtype) * run.world_size
    n_params = sum(p.numel() for p in run.raw_model.parameters())
    say(f"{args.model_type} with {n_params:,} parameters on {run.device} in {dtype_name(run.dtype)}: "
        f"{run.flops_per_token / 1e6:.1f} MFLOP per token; a large matmul reaches {run.peak_flops / 1e12:.2f} "
        f"TFLOP/s here")
    if run.rank == 0:
        start_folder(run)
        if wandb_init:
            run.wandb = wandb_init(project="masked-mixers", name=run.out_dir, config=vars(args))
    clock = time.perf_counter()
    compile_run(run)
    say(f"ready in {time.perf_counter() - clock:.0f} s")
    with StopSignals() as stop:
        caught = train(run, stop)
    if run.rank == 0:
        finish(run, caught)
    del run.model  # it holds the group of processes, whose threads must not outlive the interpreter
    leave_processes()
    if caught:
        raise SystemExit(128 + caught)
    return run


if __name__ == "__main__":
    run_script(main, "train.py", "model.py")
