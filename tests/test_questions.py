"""docs/questions.md: every snippet runs by itself and prints what its comments say."""

import re

import common

import pytest
import torch
from conftest import ROOT

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


def test_so_many_of_the_test_images_are_ones(digits):
    _, (_, labels) = digits
    assert f"{100 * (labels == 1).float().mean():.2f} % of the test images are ones" in PAGE


def test_the_comparison_still_shows_no_difference_between_adam_and_sgd():
    page = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| .*--optimizer Adam .*", page, flags=re.MULTILINE)
    assert "no difference shown" in row
