"""The text example, at small size: it learns, beats single letters, tests on unseen words and explains itself."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the examples need pip install 'convjax[examples]'")
pytest.importorskip("matplotlib", reason="the examples need pip install 'convjax[examples]'")
pytest.importorskip("spellchecker", reason="the examples need pip install 'convjax[examples]'")

import jax.numpy as jnp
from flax import nnx
from matplotlib.image import imread

from convjax.models import TextCNN
from examples import text


@pytest.fixture(scope="module")
def parts() -> tuple[text.Words, text.Words]:
    return text.load(300)


def test_it_learns_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(text, "BATCH", 64)
    report = text.run(words=500, epochs=5, seed=0, out=tmp_path / "new folder" / "text.png")
    commonest, letters, ngrams = report.baselines.values()
    assert 0.05 < commonest < 0.2
    assert commonest < letters < ngrams < 1
    assert report.accuracy > max(0.6, letters + 0.1)  # five epochs gave 0.69, single letters 0.46, guessing 0.11
    assert min(imread(report.picture).shape[:2]) > 800
    out = capsys.readouterr().out
    for part in ("device: cpu", "held out", "9 languages", "commonest language", "1- to 3-grams", "TextCNN", "wrote"):
        assert part in out


def test_no_word_and_no_start_of_one_is_on_both_sides(parts):
    train, test = parts
    assert len(train.text) + len(test.text) == 300 * len(text.LANGUAGES)
    assert len(set(train.text + test.text)) == len(train.text) + len(test.text)
    assert not {word[:4] for word in train.text} & {word[:4] for word in test.text}
    assert 0.1 < len(test.text) / len(train.text + test.text) < 0.3
    assert set(train.labels) == set(test.labels) == set(range(len(text.LANGUAGES)))


def test_words_are_of_their_language_alone(parts):
    names = list(text.LANGUAGES)
    language = {w: names[label] for part in parts for w, label in zip(part.text, part.labels, strict=True)}
    assert (language["thought"], language["haben"], language["avec"], language["questo"]) == ("en", "de", "fr", "it")
    assert not {"nicht", "pour", "casa"} & set(language)  # each is in the lists of two languages or more


def test_words_become_numbers():
    numbers = text.encode(["ab", "bäa"], " ab", length=6)
    np.testing.assert_array_equal(numbers, [[0, 1, 2, 0, 0, 0], [0, 2, 0, 1, 0, 0]])  # ä is not known


def test_an_epoch_shows_no_word_twice():
    labels = np.zeros(600)
    shown = list(text.batches(labels, epochs=2, seed=0))
    assert [len(batch) for batch in shown] == [text.BATCH] * 4
    first, second = np.concatenate(shown[:2]), np.concatenate(shown[2:])
    assert len(set(first)) == len(set(second)) == 2 * text.BATCH
    assert not np.array_equal(first, second)
    assert len(next(text.batches(labels[:5], epochs=1, seed=0))) == 5


def test_the_ngrams_of_a_network_that_is_known():
    """Filters that see "a" then "b", and "b" then "a"; the first speaks for language 0, the second for language 2."""
    model = TextCNN(vocabulary=3, embedding=3, kernel_sizes=text.KERNEL_SIZES, maps=2, num_classes=9, rngs=nnx.Rngs(0))
    model.embed.embedding[...] = jnp.eye(3)
    for conv in model.convs:
        conv.kernel[...] = jnp.zeros_like(conv.kernel[...])
    kernel = jnp.zeros((2, 3, 2)).at[0, 1, 0].set(1).at[1, 2, 0].set(1).at[0, 2, 1].set(1).at[1, 1, 1].set(1)
    model.convs[0].kernel[...] = kernel
    model.head.kernel[...] = jnp.zeros_like(model.head.kernel[...]).at[0, 0].set(3).at[1, 2].set(2)
    telling = text.telling_ngrams(model, ["abab", "abab", "baba", "baba"], " ab", shown=1)
    assert telling[0] == [("ab", pytest.approx(6))]
    assert telling[2] == [("ba", pytest.approx(4))]


def test_help_and_wrong_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        text.parse(["--help"])
    out = capsys.readouterr().out
    for part in ("TextCNN", "pyspellchecker", "--words", "--epochs", "--seed", "--out", "default: 4000"):
        assert part in out
    for wrong in (("--words", "99"), ("--epochs", "many"), ("--seed", "-1"), ("--colour", "red")):
        with pytest.raises(SystemExit, match="2"):
            text.parse(wrong)
        assert wrong[0] in capsys.readouterr().err
