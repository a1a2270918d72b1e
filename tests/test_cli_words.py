"""Words on the command line: training on a text file, continuing, drawing, and what is refused."""

import pytest
import torch
from typer.testing import CliRunner

import scoresde
from scoresde.cli import app
from scoresde.cli.words import read_words


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("noon\ndeed\nseed\nnone\n" * 8)
    return path


def test_words_are_tokens_in_the_order_of_their_characters(words):
    x, alphabet = read_words(words, 3)
    assert alphabet == "denos" and ["".join(alphabet[i] for i in row) for row in x.tolist()] == ["noon", "deed", "seed"]


def test_training_on_words_continues_and_draws_words(tmp_path, words):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, steps in ((whole, 4), (parts, 2), (parts, 4)):
        made = invoke(
            "train", "--data", words, "--out", out, "--steps", steps, "--width", 4, "--batch-size", 8, "--no-progress"
        )
        assert made.exit_code == 0, made.output
    assert "32 words of 4 characters from 'denos'" in made.output and f"now: scoresde sample {parts}" in made.output
    one, other = (scoresde.load(out) for out in (whole, parts))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    drawn = invoke("sample", whole, "--n", 5, "--batch-size", 2, "--steps", 3, "--no-progress")
    lines = (whole / "samples.txt").read_text().split()
    assert drawn.exit_code == 0 and len(lines) == 5 and all(len(w) == 4 and set(w) <= set("denos") for w in lines)
    alone = tmp_path / "alone.txt"
    assert invoke("sample", whole, "--n", 5, "--steps", 3, "--out", alone, "--no-progress").exit_code == 0
    assert alone.read_text().split() == lines  # a word does not depend on its batch


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        ("", (), "which holds no words"),
        ("ab\nabc", (), "'ab' and, as number 2, 'abc'"),
        ("aa\naa", (), "with the single character 'a'"),
        ("ab\nba", ("--labels",), "expected none of --labels"),
        ("ab\nba", ("--sde", "ve"), "options of images and vectors"),
    ],
)
def test_what_makes_no_words_is_refused(tmp_path, text, arguments, sentence):
    path = tmp_path / "words.txt"
    path.write_text(text)
    made = invoke("train", "--data", path, "--out", tmp_path / "run", "--steps", 1, *arguments)
    assert made.exit_code == 2 and sentence in " ".join(made.output.split()), made.output


def test_a_model_of_words_is_drawn_to_a_text_without_labels(tmp_path):
    (tmp_path / "alphabet.txt").write_text("ab")
    for arguments in (("--label", "1"), ("--end", "flow"), ("--out", "words.png")):
        made = invoke("sample", tmp_path, *arguments)
        assert made.exit_code == 2 and ("has none of them" in made.output or "ends in .txt" in made.output), made.output
