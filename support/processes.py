"""Under torchrun: each process computes its share of every batch, and rank 0 alone prints and writes files.

The mathematics is that of one process: the outputs are gathered, so that every process has the loss of the whole batch,
and the gradients of the shares are added up. torch.distributed does the work: gloo on CPUs, nccl on CUDA devices.
"""

import contextlib
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
TIMEOUT = timedelta(minutes=2)  # for one process to wait for another, which may draw pictures or be on a slow disk
MAY_DIFFER = {"device", "parts", "run", "load_model"}


def check_flags(p, args) -> None:
    """Refuse flags that need a single process, with status 2 and one line; give each process a device of its own."""
    for name in ("compile", "predict"):
        if vars(args).get(name):
            p.error(f"--{name} works in a single process only; omit it under torchrun")
    if args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available()):
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    elif ":" in args.device:
        p.error(f"--device {args.device} is one device, but each process takes its own; use --device cuda")
    if RANK:  # which gets what rank 0 has loaded
        args.save_model = args.load_model = args.checkpoint = args.log = args.plot = None


@contextlib.contextmanager
def group(args):
    """Keep the processes connected; rank 0 alone prints.

    Raises SystemExit with one line where a process has other settings or data than rank 0.
    """
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)  # where broadcast_object_list puts what it sends
    store, *_ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:  # on one machine all count the same restarts
        # torchrun keeps its store over them, where a process would find the addresses of dead ones
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = dist.get_default_backend_for_device(args.device)
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=RANK, world_size=WORLD)
    try:
        own = {name: value for name, value in args.settings.items() if name not in MAY_DIFFER}
        own |= {"epochs": args.epochs, "log_interval": args.log_interval}  # or some would wait for others
        for name, value in from_rank_0(own).items():
            if own[name] != value:
                raise SystemExit(f"{name} is {own[name]} on rank {RANK}, {value} on rank 0; use the same everywhere")
        with contextlib.redirect_stdout(open(os.devnull, "w") if RANK else sys.stdout):
            yield
    finally:
        dist.destroy_process_group()


def from_rank_0(content):
    """What rank 0 passes, on every process."""
    box = [content]
    dist.broadcast_object_list(box)
    return box[0]


def share(batch: torch.Tensor, instead=torch.clone) -> torch.Tensor:
    """This process's share of a batch `(B, …)`; where that is empty, `instead` of the batch's first sample."""
    own = batch.tensor_split(WORLD)[RANK]
    return own if len(own) else instead(batch[:1])


def gather(outputs: torch.Tensor, size: int) -> torch.Tensor:
    """The outputs `(size, …)` of the whole batch, from those of each process's `share`."""
    whole = outputs.new_zeros(size, *outputs.shape[1:])
    own = whole.tensor_split(WORLD)[RANK]
    own.copy_(outputs[: len(own)])
    dist.all_reduce(whole)
    return whole


def add(gradients: list) -> list:
    """Each gradient's sum over the processes, in one message; None, of a parameter that is not used, stays None."""
    used = [gradient for gradient in gradients if gradient is not None]
    flat = torch.cat([gradient.flatten() for gradient in used])
    dist.all_reduce(flat)
    parts = iter(flat.split([gradient.numel() for gradient in used]))
    return [gradient if gradient is None else next(parts).view_as(gradient) for gradient in gradients]
