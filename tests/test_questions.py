"""docs/questions.md: every snippet runs by itself and prints what its comments say."""

import re

import common

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.special import expit

PAGE = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
SNIPPETS = {}
for section in PAGE.split("\n## ")[1:]:
    question = section.splitlines()[0]
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL), 1):
        SNIPPETS[question, number] = block


@pytest.mark.parametrize("snippet", SNIPPETS.values(), ids=map(str, SNIPPETS))
def test_a_snippet_prints_what_it_says(snippet, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(common.DEFAULTS, "data_dir", tiny)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(snippet, {})
    said = re.findall(r"print\(.*\)  # (.+)", snippet)
    assert said
    assert capsys.readouterr().out.splitlines()[-len(said) :] == said


def test_every_question_has_a_snippet():
    answered = {question for question, _ in SNIPPETS}
    assert answered == set(re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE))


def test_weights_from_keras_compute_what_keras_computes():
    names = {}
    exec(SNIPPETS["How do I load Keras' LSTM weights?", 1], names)
    shapes = (28, 64), (16, 64), 64, (5, 28, 28)
    kernel, recurrent, bias, x = [np.random.normal(0, 0.2, shape) for shape in shapes]
    h = c = np.zeros((5, 16))
    for t in range(28):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        c = expit(f) * c + expit(i) * np.tanh(g)
        h = expit(o) * np.tanh(c)
    names["lstm"].load_state_dict(names["from_keras"](kernel, recurrent, bias))
    output, _ = names["lstm"](torch.tensor(x).float())
    assert np.allclose(output[:, -1].detach(), h, atol=1e-5)


def test_so_many_of_the_test_images_are_ones(digits):
    _, (_, labels) = digits
    assert f"{100 * (labels == 1).float().mean():.2f} % of the test images are ones" in PAGE


def test_the_comparison_still_shows_no_difference_between_adam_and_sgd():
    page = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| .*--optimizer Adam .*", page, flags=re.MULTILINE)
    assert "no difference shown" in row
