"""Computes the parts of a batch side by side: on threads, and across torchrun's processes."""

import contextlib
import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist


def keep_freed_memory() -> None:
    """Have glibc keep the memory that this process frees.

    Otherwise oneDNN's LSTM may give megabytes back to the kernel, whose pages the next step faults
    in again. See benchmarks/freed_memory.py.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(-3, 32 << 20):  # M_MMAP_THRESHOLD; 32 MiB is the most
            mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def is_connected() -> bool:
    """Whether torchrun's processes are connected. Some builds of torch lack torch.distributed."""
    return dist.is_available() and dist.is_initialized()


def side_by_side(compute, parameters, images, count: int, threads: int) -> torch.Tensor:
    """What `compute` returns for images `(B, 1, 28, 28)`, from `count` parts on so many threads.

    Each part is computed from beginning to end on one thread, forward and backward. Given two
    threads, `nn.LSTM` has them wait for each other hundreds of times a step, and where another
    program has one of the cores each wait can cost a time slice. Parts wait twice a step: beside
    one busy process an epoch of `sgd` takes 1.6 times as long as alone, the tutorial's 2.8 times
    (benchmarks/busy.py; n = 3, AMD EPYC, 2 cores, torch 2.14). Results depend on the parts, not on
    the number of threads.
    """
    share = images
    if is_connected():
        from support import processes

        share = processes.share(images)
    parameters = [p for p in parameters if p.requires_grad]
    each = functools.partial(run_each, threads)
    parts = share.tensor_split(count)
    recording = torch.is_grad_enabled()
    return SideBySide.apply(each, compute, recording, len(images), parts, *parameters)


@functools.cache
def pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One pool per process id: a fork cannot use its parent's threads."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def run_each(threads: int, function, parts) -> list:
    """The function's results for the parts; raises what one of them raised once all have ended."""
    results = [None] * len(parts)
    left = iter(enumerate(parts))

    def work():
        for k, part in left:  # whoever is free takes the next
            results[k] = function(part)

    others = []
    if threads > 1:  # the caller's is one of them
        workers = pool(threads - 1, os.getpid())
        others = [workers.submit(work) for _ in parts[1:threads]]
    try:
        work()
    finally:
        # One that waits for a thread is not needed: within another model's part none gets free
        others = [other for other in others if not other.cancel()]
        for other in others:
            other.exception()  # waits until it has ended, faster than wait(others)
    for other in others:
        other.result()
    return results


class SideBySide(torch.autograd.Function):
    """The outputs of all parts as one tensor; backward goes through the parts side by side, too."""

    @staticmethod
    def forward(ctx, each, compute, recording, size, parts, *parameters):
        def run(part):
            with torch.set_grad_enabled(recording):  # each thread has its own
                return compute(part)

        ctx.each = each
        ctx.parameters = parameters
        ctx.outputs = each(run, parts)
        outputs = torch.cat([output.detach() for output in ctx.outputs])
        if is_connected():
            from support import processes

            outputs = processes.gather(outputs, size)
        if not any(output.requires_grad for output in ctx.outputs):
            ctx.mark_non_differentiable(outputs)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        def run(part):
            output, gradient = part
            if not output.requires_grad:
                return [None] * len(ctx.parameters)
            return torch.autograd.grad(output, ctx.parameters, gradient, allow_unused=True)

        if is_connected():
            from support import processes

            gradient = processes.share(gradient, torch.zeros_like)
        gradients = gradient.split([len(output) for output in ctx.outputs])
        of_parts = ctx.each(run, list(zip(ctx.outputs, gradients)))
        sums = []
        for of_parameter in zip(*of_parts):
            used = [each for each in of_parameter if each is not None]
            sums.append(functools.reduce(torch.add, used) if used else None)
        if is_connected():
            sums = processes.add(sums)
        return None, None, None, None, None, *sums
