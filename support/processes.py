"""Under torchrun: each process takes its share of every batch, and rank 0 alone prints results and writes files.

The mathematics is that of one process. torch.distributed does the work: gloo on CPUs, nccl on CUDA devices.
"""

import contextlib
import os
import re
import sys
import time
import traceback
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn  # noqa: F401  if torch imports it later, its default arguments keep the group alive
from torch.nn.parallel import DistributedDataParallel

from support import checkpoint

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
LOCAL_RANK = int(os.environ["LOCAL_RANK"])
PATIENCE = 120  # seconds that a process waits for another, which may be drawing pictures or on a slow disk
MAY_DIFFER = {"device", "parts", "run", "load_model", "data"}  # between the processes' settings


def hush() -> None:
    """Discard what every rank but 0 prints; stderr stays, for what only that process can say."""
    if RANK:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until the process ends


@contextlib.contextmanager
def group(runs: list):
    """Keep the processes connected; the flags that name files are rank 0's alone.

    Raises SystemExit with one line where the connection is lost.
    """
    device = runs[0].device
    for run in runs if RANK else ():
        run.save_model = run.load_model = run.checkpoint = run.log = run.plot = None  # rank 0 hands on what it loads
    if device.type == "cuda":
        here, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if there < here:
            time.sleep(10 if LOCAL_RANK else 0)  # one line per machine; torchrun then ends the other processes
            raise SystemExit(f"{here} processes need {here} GPUs (found {there}); lower --nproc-per-node")
        torch.cuda.set_device(LOCAL_RANK)
    try:
        backend, wait = dist.get_default_backend_for_device(device), timedelta(seconds=PATIENCE)
        dist.init_process_group(backend, store=meet(wait), rank=RANK, world_size=WORLD, timeout=wait)
        yield
    except BaseException as error:
        let_go(error)
        reason = (str(error).splitlines() or [""])[0]
        if not isinstance(error, dist.DistError) and not (isinstance(error, RuntimeError) and "gloo" in reason):
            raise
        reason = re.sub(r"^\[.*?\] ", "", reason)  # gloo begins with a place in its source
        raise SystemExit(f"rank {RANK} stopped: it lost the other processes ({reason[:150]})") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def let_go(error: BaseException) -> None:
    """Clear the frames of an error and of those it arose from, which hold the replica and through it the group.

    If the replica is freed last, it ends the group's thread while it holds the GIL, for which that thread may be
    waiting: with torch 2.11 some processes never ended.
    """
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def meet(wait: timedelta) -> dist.Store:
    """A store private to this start, ready once every process has joined.

    torchrun keeps one store over its restarts, in which a process would find the addresses of dead ones and wait for
    them. So rank 0 publishes a token, the others answer it with theirs, and rank 0 lists the answers it has read.
    Raises RuntimeError after `wait`.
    """
    store, own, end = next(dist.rendezvous("env://", timeout=wait))[0], uuid.uuid4().hex, time.monotonic() + PATIENCE
    if RANK == 0:
        store.set("call", own)
    while time.monotonic() < end:
        call = store.get("call").decode()
        if RANK:
            store.set(f"answer {RANK}", f"{call} {own}")
            if store.check([f"heard {call}"]) and own in store.get(f"heard {call}").decode():
                return dist.PrefixStore(call, store)
        else:
            answers = [store.get(f"answer {rank}").decode() for rank in range(1, WORLD)]
            if all(answer.startswith(own) for answer in answers):
                store.set(f"heard {own}", " ".join(answers))
                return dist.PrefixStore(own, store)
        time.sleep(0.02)
    raise dist.DistError(f"not all processes joined within {PATIENCE} seconds")


class Share:
    """This process's share of each of a `common.Loader`'s batches, perhaps empty.

    `size` is how many images of a full batch it has, `weight` its part of the latest batch.
    """

    def __init__(self, loader):
        self.loader, self.size = loader, len(range(RANK, loader.batch_size, WORLD))

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            images, labels = (part.tensor_split(WORLD)[RANK] for part in batch)
            self.weight = len(labels) / len(batch[1])
            yield images, labels


def replicated(model: torch.nn.Module, loader: Share) -> DistributedDataParallel:
    """The model with gradients averaged over all samples of a batch, wherever they are.

    DistributedDataParallel would average over processes, whose shares may differ by a sample: they are weighted.
    """

    def weigh(_, bucket):
        summed = dist.all_reduce(bucket.buffer().mul_(loader.weight), async_op=True).get_future()
        return summed.then(lambda future: future.value()[0])

    replica = DistributedDataParallel(model)
    replica.register_comm_hook(None, weigh)
    return replica


def agree(run) -> None:
    """Bring every `common.Run` to where rank 0's is: weights, optimizer, order of the images, epochs so far.

    Raises SystemExit with one line where a process has other settings or data than rank 0.
    """
    settings = {name: value for name, value in run.settings.items() if name not in MAY_DIFFER}
    settings |= {name: getattr(run.args, name) for name in ("epochs", "log_interval")}  # or some would wait forever
    settings["data"] = checkpoint.fingerprint(run.train_loader, run.test_loader)
    everyone = [None] * WORLD
    dist.all_gather_object(everyone, settings)
    for rank, other in enumerate(everyone):
        for name, value in other.items():
            if value != everyone[0][name]:
                line = f"{name} is {value} on rank {rank} and {everyone[0][name]} on rank 0; use the same everywhere"
                raise SystemExit(1 if LOCAL_RANK else line)  # once on each machine
    box = [None if RANK else checkpoint.state(run)]
    dist.broadcast_object_list(box)
    if RANK:
        checkpoint.restore(run, box[0])


def total(*numbers: float) -> list[float]:
    """Each number's sum over the processes."""
    everyone = [None] * WORLD
    dist.all_gather_object(everyone, numbers)
    return [sum(each) for each in zip(*everyone)]


def mean(loss: float, accuracy: float, n: int) -> tuple[float, float]:
    """Both over the samples of all processes; this one's are of its own n, perhaps none."""
    loss, accuracy, samples = total(loss * n if n else 0, accuracy * n if n else 0, n)
    return loss / samples, accuracy / samples


def gathered(seen: list[tuple[torch.Tensor, torch.Tensor]], loader: Share) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All processes' `[(outputs (B, 10), labels (B,)), …]` over an unshuffled loader as one pair, in its order."""
    everyone = [None] * WORLD
    dist.all_gather_object(everyone, [torch.cat(part).cpu() for part in zip(*seen)])
    batches = torch.arange(len(loader.labels)).split(loader.batch_size)
    order = torch.cat([batch.tensor_split(WORLD)[rank] for rank in range(WORLD) for batch in batches]).argsort()
    outputs, labels = (torch.cat(part)[order] for part in zip(*everyone))
    return [(outputs, labels)]
