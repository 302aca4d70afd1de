"""Model files: written whole or not at all, read without trust."""

from pathlib import Path

import torch


def save_model(path: Path, model: torch.nn.Module) -> None:
    """Write the model's bare state_dict; it loads into the tutorial's own class."""
    torch.save(model.state_dict(), path)


def load_model(path: Path, model: torch.nn.Module) -> None:
    """Load a state_dict from `path` into the model."""
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
