"""--predict: the model's answer to any picture of a digit."""

import sys

import torch

from support import files, flags, model_files
from support.pictures import read_picture


def classify(args, model: torch.nn.Module, classes: list[str]) -> None:
    """Print `path: 7 (0.998)` for each picture of `--predict`; draw them for `--plot`.

    What is wrong with a picture is a line on stderr. Raises SystemExit with status 1 if one has no
    answer.
    """
    for _, path in flags.written(args):
        files.check_writable(path)
    model_files.load(args.load_model, model)
    model.eval()
    answers = []
    for path in args.predict:
        try:
            image = read_picture(path)
        except Exception as error:  # a broken file can raise anything that its decoder does
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            print(f"{path}: {reason}; give a picture of one digit", file=sys.stderr)
            continue
        with torch.no_grad():
            outputs = model(as_input(args, image))
        probability = outputs[0].float().softmax(0).cpu()
        if not probability.isfinite().all():
            what = "the model's outputs are not finite; train it again"
            raise SystemExit(f"{args.load_model}: {what}")
        print(f"{path}: {classes[probability.argmax()]} ({probability.max():.3f})")
        answers.append((path.name, image, probability))
    if args.plot and answers:
        from support import plots, steps

        of_steps = []
        for _, image, _ in answers:
            after = steps.after_each_step(model, as_input(args, image))
            if after is not None:
                of_steps.append(after[:, 0].softmax(1).cpu())
        columns = bool(of_steps) and steps.reads_columns(model)
        figure = plots.predictions(answers, classes, of_steps, columns)
        files.write(args.plot / "predictions.png", plots.png(figure))
    if len(answers) < len(args.predict):
        raise SystemExit(1)


def as_input(args, image: torch.Tensor) -> torch.Tensor:
    """An image `(28, 28)` from 0 to 1 as the model's batch `(1, 1, 28, 28)`."""
    pixels = image * 2 - 1 if args.normalize else image
    return pixels[None, None].to(args.device)
