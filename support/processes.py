"""Under torchrun: each process computes its share of every batch; rank 0 prints and writes files.

The result is that of one process, up to rounding: the outputs are gathered, so that every process
has the loss of the whole batch, and the gradients of the shares are added up. torch.distributed
does the work: gloo on CPUs, nccl on CUDA devices.
"""

import contextlib
import io
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=2)  # more than rank 0 may wait for a checkpoint's lock
MAY_DIFFER = ("device", "parts", "run", "load_model")
TORCHRUN = os.getppid()  # its process id, while it lives


def check_flags(parser, args) -> None:
    """Refuse flags that need a single process; give each process a GPU of its own."""
    for name in ("compile", "predict"):
        if vars(args).get(name):
            parser.error(f"--{name} works in a single process only; omit it under torchrun")
    if str(args.device) == "mps":
        parser.error("--device mps works in a single process only; use cpu under torchrun")
    if str(args.device) == "cuda":
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    if os.environ["RANK"] != "0":  # the others get rank 0's weights and write nothing
        for name in ("save_model", "load_model", "checkpoint", "log", "plot"):
            setattr(args, name, None)


@contextlib.contextmanager
def group(run):
    """Connect the processes; rank 0 alone prints."""
    args = run.args
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)  # broadcast_object_list sends from the current one
    store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        # On one machine all count the same restarts. torchrun keeps its store over them, where a
        # process would find the addresses of dead ones.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = dist.get_default_backend_for_device(args.device)
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=world)
    try:
        check_same(run, rank)
        out = io.StringIO() if rank > 0 else sys.stdout  # read by nobody
        with contextlib.redirect_stdout(out):
            yield
    finally:
        dist.destroy_process_group()


def check_same(run, rank: int) -> None:
    """SystemExit with one line if this process has other settings or data than rank 0."""
    own = {name: value for name, value in run.settings.items() if name not in MAY_DIFFER}
    own["epochs"] = run.args.epochs
    own["log_interval"] = run.args.log_interval
    for name, value in from_rank_0(own).items():
        if own.get(name) != value:
            what = f"{name} is {own.get(name)} on rank {rank}, {value} on rank 0"
            raise SystemExit(f"{what}; use the same everywhere")


def end_with_torchrun() -> None:
    """End this process if torchrun was killed; it would train on and hold the checkpoint's lock."""
    if os.getppid() != TORCHRUN:
        raise SystemExit("torchrun has ended; the same command resumes from a --checkpoint")


def from_rank_0(content):
    """Rank 0's `content`, on every process."""
    box = [content]
    dist.broadcast_object_list(box)
    return box[0]


def share(batch: torch.Tensor, instead=torch.clone) -> torch.Tensor:
    """This process's share of a batch `(B, …)`.

    If that is empty, `instead` of the batch's first sample, which `gather` leaves out.
    """
    own = batch.tensor_split(dist.get_world_size())[dist.get_rank()]
    return own if len(own) else instead(batch[:1])


def gather(outputs: torch.Tensor, size: int) -> torch.Tensor:
    """The outputs `(size, …)` of the whole batch, from those of each process's `share`."""
    whole = outputs.new_zeros(size, *outputs.shape[1:])
    own = whole.tensor_split(dist.get_world_size())[dist.get_rank()]
    own.copy_(outputs[: len(own)])
    dist.all_reduce(whole)
    return whole


def add(gradients: list) -> list:
    """Each gradient's sum over the processes, in one message; None stays None."""
    used = [gradient for gradient in gradients if gradient is not None]
    flat = torch.cat([gradient.flatten() for gradient in used])
    dist.all_reduce(flat)
    parts = iter(flat.split([gradient.numel() for gradient in used]))
    sums = []
    for gradient in gradients:
        sums.append(None if gradient is None else next(parts).view_as(gradient))
    return sums
