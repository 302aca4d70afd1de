"""A feed-forward network reads MNIST: 784 to 256 to 256 to 10, with ReLU (003).

python mlp_mnist.py                                  # SGD 0.01, batches of 20, 30 epochs
python mlp_mnist.py --epochs 5 --lr 0.1              # any entry of the recipe can be overridden
python mlp_mnist.py --save-model mlp.pth             # and later: --epochs 0 --load-model mlp.pth

The tutorial never shuffles; here the training images come in a fresh order each epoch.
"""

import time

import torch
from torch import nn
from tqdm import tqdm

import checkpoint
import common
import mnist


class Net(nn.Module):
    """003's network: `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 10)

    def forward(self, x):
        x = x.flatten(1)
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)


RECIPE = dict(  # 003
    optimizer="SGD", lr=0.01, batch_size=20, test_batch_size=20, epochs=30, normalize=False, log_interval=0,
)  # fmt: skip


def compiled(model, criterion, autocast, lr):
    """A training step with SGD as one compiled graph: `step(images (N, 1, 28, 28), labels (N,))` to outputs `(N, 10)`.

    The same mathematics as the loop's own lines, fewer operations one by one: at a batch of 20 what lies between them
    counts (benchmarks/speed.py).
    Raises SystemExit where torch is too old to put gradients into a graph.
    """
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise SystemExit(f"--compile needs a newer torch than {torch.__version__}; go without it")
    torch._dynamo.config.trace_autograd_ops = True  # gradients within the graph
    parameters = list(model.parameters())

    def step(image, label):
        with autocast():
            output = model(image)
            loss = criterion(output, label)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients):
                parameter.sub_(gradient, alpha=lr)
        return output.detach()

    return torch.compile(step, fullgraph=True, dynamic=False)


def train(args):
    """Train the network and print what the tutorial prints."""
    recipe = common.override(RECIPE, args)
    torch.manual_seed(args.seed)
    model = Net().to(args.device)
    if args.load_model:
        checkpoint.load_model(args.load_model, model)
    if args.predict:
        answers = mnist.predict(model, args.predict, recipe.normalize)
        if args.plot:
            import plots

            plots.predictions(args.plot, answers)
        raise SystemExit(len(answers) < len(args.predict))
    train_loader, test_loader = mnist.loaders(recipe, args)
    criterion = nn.CrossEntropyLoss()
    optimizer = common.optimizer(recipe.optimizer, model, recipe.lr)
    autocast = common.autocast(args)
    step_compiled = compiled(model, criterion, autocast, recipe.lr) if args.compile else None
    run = common.describe(__file__, "mlp", model, recipe, args)
    history, valid = [], None
    if args.checkpoint:
        run, history = checkpoint.resume(args.checkpoint, run, model, optimizer, train_loader.generator, recipe.epochs)
        if args.log:
            common.complete_log(args.log, history)

    for epoch in range(len(history), recipe.epochs):
        start = time.perf_counter()
        model.train()
        seen = []
        for step, (image, label) in enumerate(common.progress(train_loader, epoch, seen), 1):
            if args.compile:
                output = step_compiled(image, label)
            else:
                with autocast():
                    output = model(image)
                    loss = criterion(output, label)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            seen.append((output.detach(), label))
            if recipe.log_interval and step % recipe.log_interval == 0:
                tqdm.write(common.running(epoch, recipe.epochs, step, seen, model, test_loader))
        valid = common.evaluate(model, test_loader)
        history.append(common.record(run, epoch, seen, valid, start))
        if args.checkpoint:
            checkpoint.save_checkpoint(args.checkpoint, model, optimizer, train_loader.generator, run, history)
        if args.log:
            common.append_log(args.log, history[-1:])
        print(common.epoch_line(history[-1]))

    valid = valid or common.evaluate(model, test_loader)
    common.report(valid)
    if args.save_model:
        checkpoint.save(args.save_model, model.state_dict())
    if args.plot:
        import plots

        plots.run(args.plot, train_loader, test_loader, history, valid)


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--compile", action="store_true", help="the training step through torch.compile")
    args = common.parse(parser, argv)
    with common.clean_exit(args):
        common.set_up(args)
        torch.set_num_threads(1)  # products this small are slower, and their times erratic, when cores share them
        train(args)


if __name__ == "__main__":
    main()
