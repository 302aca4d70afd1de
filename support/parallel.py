"""A batch's parts side by side: on threads, and under torchrun over its processes."""

import contextlib
import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor

import torch

from support import SEVERAL

processes = None
if SEVERAL:
    from support import processes


class SideBySide:
    """Computes a batch in parts, each from beginning to end on one thread, forward and backward.

    Given two threads, `nn.LSTM` has them wait for each other hundreds of times a step, and where another program has
    one of the cores each wait can cost a time slice. Parts wait twice a step: beside one busy process a step of `sgd`
    takes 10 ms, the tutorial's way 36 (benchmarks/busy.py; n = 3, AMD EPYC, 2 cores, torch 2.14). Results depend on
    the parts, not on the number of threads.
    """

    def __init__(self, threads: int):
        self.threads = threads  # the caller's is one of them
        self.pool = ThreadPoolExecutor(max(1, threads - 1), initializer=torch.set_num_threads, initargs=(1,))
        # glibc would give the megabytes that oneDNN's LSTM frees at each call back to the kernel, and the next step
        # would fault every page in again: up to 1.3 times as long (benchmarks/set_up.py, n = 3, torch 2.14).
        with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
            if (mallopt := ctypes.CDLL(None).mallopt)(-3, 32 << 20):  # M_MMAP_THRESHOLD; 32 MiB is the most
                mallopt(-1, -1)  # M_TRIM_THRESHOLD: never

    def __call__(self, compute, parameters, images, count: int) -> torch.Tensor:
        """What `compute` returns for images `(B, 1, 28, 28)`, from `count` parts, with gradients of the parameters."""
        parts = (processes.share(images) if processes else images).tensor_split(count)
        parameters = [p for p in parameters if p.requires_grad]
        return Together.apply(self, compute, torch.is_grad_enabled(), len(images), parts, *parameters)

    def each(self, function, parts) -> list:
        """The function's results for the parts; raises what one of them raised once all have ended."""
        results, left = [None] * len(parts), iter(enumerate(parts))

        def work():
            for k, part in left:  # whoever is free takes the next
                results[k] = function(part)

        others = [self.pool.submit(work) for _ in parts[1 : self.threads]]
        try:
            work()
        finally:
            for other in others:
                other.exception()  # waits until it has ended, faster than wait(others)
        for other in others:
            other.result()
        return results


class Together(torch.autograd.Function):
    """The outputs of all parts as one tensor; backward goes through the parts side by side as well."""

    @staticmethod
    def forward(ctx, side_by_side, compute, recording, size, parts, *parameters):
        def run(part):
            with torch.set_grad_enabled(recording):  # each thread has its own
                return compute(part)

        ctx.each, ctx.parameters, ctx.outputs = side_by_side.each, parameters, side_by_side.each(run, parts)
        if any(output.shape[:1] != part.shape[:1] for output, part in zip(ctx.outputs, parts)):
            raise TypeError("the outputs of a part are not a row per image")
        outputs = torch.cat([output.detach() for output in ctx.outputs])
        return processes.gather(outputs, size) if processes else outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        def run(part):
            return torch.autograd.grad(part[0], ctx.parameters, part[1], allow_unused=True)

        share = processes.share(gradient, torch.zeros_like) if processes else gradient
        parts = [*zip(ctx.outputs, share.split([len(output) for output in ctx.outputs]))]
        used = [[g for g in each if g is not None] for each in zip(*ctx.each(run, parts))]
        sums = [functools.reduce(torch.add, each) if each else None for each in used]
        return None, None, None, None, None, *(processes.add(sums) if processes else sums)
