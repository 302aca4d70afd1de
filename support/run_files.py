"""The files of a run: checked and read before training, written per epoch and at the end."""

import contextlib
import uuid
import zlib

import torch

from support import checkpoints, files, flags, log, model_files


@contextlib.contextmanager
def opened(run):
    """Check the files, load `--load-model` or `--checkpoint`, and yield the history so far.

    Until it is left, the checkpoint is locked and torchrun's processes are connected. Raises
    SystemExit if a file does not fit or cannot be written.
    """
    args = run.args
    run.settings["run"] = uuid.uuid4().hex[:12]
    run.settings["data"] = fingerprint(run.loaders)  # a run on other data is another run
    for _, path in flags.written(args):
        files.check_writable(path)
    if args.log:
        log.check(args.log)
    if args.save_model:
        model_files.check(args.save_model)  # a slip would replace somebody's script
    with contextlib.ExitStack() as stack:
        history = []
        if args.load_model:
            run.settings["load_model"] = model_files.load(args.load_model, run.model)  # a checksum
        if args.checkpoint:
            # Processes that outlive a killed torchrun stop when their epoch ends
            seconds = 0 if run.settings["processes"] == 1 else 100
            stack.enter_context(files.locked(args.checkpoint, seconds))
            history = checkpoints.resume(run)
        if run.settings["processes"] > 1:
            from support import processes

            stack.enter_context(processes.group(run))
            history = checkpoints.share(run, history)
        yield history


def fingerprint(loaders) -> int:
    """A checksum of the loaders' images and labels."""
    crc = 0
    for loader in loaders:
        crc = zlib.crc32(loader.images.cpu().numpy(), crc)
        crc = zlib.crc32(loader.labels.cpu().numpy(), crc)
    return crc


def save_epoch(run) -> None:
    """Save the last epoch: first to the checkpoint, then to the log."""
    if run.args.checkpoint:
        checkpoints.save(run)
    if run.args.log:
        log.append(run.args.log, run.history[-1:])
    if run.settings["processes"] > 1:
        from support import processes

        processes.end_with_torchrun()


def finish(run) -> None:
    """Write the model and the pictures."""
    args, model = run.args, run.model
    if args.save_model:
        settings = {name: value for name, value in run.settings.items() if name != "run"}
        model_files.save(args.save_model, model.state_dict(), settings)
    if args.plot:
        from support import plots, steps

        model.eval()
        outputs, labels = outputs_for(model, run.loaders[1])
        figures = plots.run(run.classes, run.history, *run.loaders, outputs, labels)
        if figure := steps.figure(model, run.loaders[1], run.classes):
            figures["steps.png"] = figure
        for name, figure in figures.items():
            files.write(args.plot / name, plots.png(figure))


def outputs_for(model: torch.nn.Module, loader) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's outputs `(N, 10)` for an unshuffled loader's images, and their labels `(N,)`."""
    outputs = []
    with torch.no_grad():
        for images, _ in loader:
            outputs.append(model(images).float().cpu())
    return torch.cat(outputs), loader.labels.cpu()
