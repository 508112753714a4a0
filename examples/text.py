"""Train a TextCNN to tell the language of a single word from its letters, beside logistic regression on n-grams.

Run as `python -m examples.text`. Nine languages in Latin script: of each the 4,000 commonest words that none of the
others has, from the word lists inside pyspellchecker. Words that share their first four letters are held out together,
so that "walked" is never tested on a network that has seen "walking". Prints the accuracy on the held-out words and
draws learning curves, which languages are confused, and the n-grams by which the network tells them, into out/text.png.
Takes about a minute on two CPU cores.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.command_line import leave_at_ctrl_c, positive, whole

LANGUAGES = dict(
    eu="Basque", nl="Dutch", en="English", fr="French", de="German", it="Italian", lv="Latvian", pt="Portuguese",
    es="Spanish",
)  # fmt: skip
SHORTEST, LONGEST = 4, 16  # letters of a word; few are longer
HELD_OUT = 5  # one group of words in so many
FEWEST = 100  # words of a language: fewer have hardly an n-gram in common
KERNEL_SIZES = (2, 3, 4, 5)  # letters that a filter sees
BATCH = 256
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-2


class Report(NamedTuple):
    """What a run found: accuracies on held-out words, from 0 to 1, the baselines' by name."""

    accuracy: float
    baselines: dict[str, float]
    picture: Path


class Words(NamedTuple):
    """Words, and the number of each one's language."""

    text: list[str]
    labels: Any


class Curves(NamedTuple):
    """Accuracy after each epoch, from 0 to 1."""

    train: list[float]
    test: list[float]


def load(per_language: int) -> tuple[Words, Words]:
    """Words to train on and held-out words, which share no first four letters."""
    from spellchecker import SpellChecker

    counts = [SpellChecker(language=code).word_frequency.dictionary for code in LANGUAGES]
    parts = Words([], []), Words([], [])
    for label, language in enumerate(counts):
        fits = lambda w: w.isalpha() and SHORTEST <= len(w) <= LONGEST and sum(w in others for others in counts) == 1
        commonest = sorted(language, key=language.__getitem__, reverse=True)
        for word in islice(filter(fits, commonest), per_language):
            part = parts[zlib.crc32(word[:SHORTEST].encode()) % HELD_OUT == 0]
            part.text.append(word)
            part.labels.append(label)
    train, test = (Words(part.text, np.array(part.labels)) for part in parts)
    return train, test


def encode(words: Sequence[str], alphabet: str, length: int = LONGEST + 2) -> np.ndarray:
    """Letters as numbers, (word, length): a space, the word, spaces."""
    number = {letter: i for i, letter in enumerate(alphabet)}
    return np.array([[number.get(letter, 0) for letter in f" {word}".ljust(length)] for word in words], np.int32)


def logistic_regression(train: Words, test: Words, longest: int) -> float:
    """Accuracy on held-out words of logistic regression on which n-grams of up to `longest` letters a word has."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    ngrams = CountVectorizer(analyzer="char_wb", ngram_range=(1, longest), lowercase=False, binary=True, min_df=2)
    classifier = LogisticRegression(C=0.3, max_iter=1000).fit(ngrams.fit_transform(train.text), train.labels)
    return float(classifier.score(ngrams.transform(test.text), test.labels))


def batches(labels: np.ndarray, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Which words come together: each epoch all in a new order, short of the last few that fill no batch."""
    rng = np.random.default_rng(seed)
    size = min(BATCH, len(labels))
    for _ in range(epochs):
        order = rng.permutation(len(labels))
        yield from order[: len(labels) // size * size].reshape(-1, size)


def train_network(train: Words, test: Words, alphabet: str, epochs: int, seed: int) -> tuple[Any, Curves, np.ndarray]:
    """A trained network, its learning curves, and what it takes each held-out word for."""
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from tqdm.auto import tqdm

    from convjax.models import create, parameter_count

    options: dict[str, Any] = dict(embedding=32, kernel_sizes=KERNEL_SIZES, maps=128, dropout=0.2)
    model: Any = create("textcnn", vocabulary=len(alphabet), num_classes=len(LANGUAGES), **options, rngs=nnx.Rngs(seed))
    per_epoch = max(1, len(train.text) // BATCH)
    steps = epochs * per_epoch
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, steps // 10, steps)
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=WEIGHT_DECAY), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any, letters: Any, labels: Any) -> Any:
        def loss(model: Any) -> Any:
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model(letters), labels))

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    @nnx.jit
    def predict(model: Any, letters: Any) -> Any:
        return jnp.argmax(model(letters), axis=-1)

    train_letters, test_letters = encode(train.text, alphabet), encode(test.text, alphabet)
    some = np.random.default_rng(seed).permutation(len(train.text))[: len(test.text)]  # for the learning curve
    curves = Curves([], [])
    with tqdm(total=steps, desc=f"training {parameter_count(model):,} weights", unit="step", mininterval=0.5) as bar:
        for number, now in enumerate(batches(train.labels, epochs, seed), 1):
            model.train()
            loss = step(model, optimizer, train_letters[now], train.labels[now])
            bar.update()
            if number % per_epoch == 0:
                model.eval()
                predicted = np.asarray(predict(model, test_letters))
                fitted = np.asarray(predict(model, train_letters[some]))
                curves.train.append(float(np.mean(fitted == train.labels[some])))
                curves.test.append(float(np.mean(predicted == test.labels)))
                bar.set_postfix(loss=f"{float(loss):.2f}", held_out=f"{100 * curves.test[-1]:.1f} %", refresh=False)
    return model, curves, predicted


def telling_ngrams(model: Any, words: Sequence[str], alphabet: str, shown: int) -> list[list[tuple[str, float]]]:
    """For each language the n-grams that the filters take as the best sign of it, and how good a sign each is.

    An n-gram excites the filters of its length; their activations times their weights are what it adds to the logit of
    each language. It is as good a sign of one as it adds more there than to the next best. Asked are the n-grams that
    one word in a thousand has.
    """
    weights = np.asarray(model.head.kernel[...]).reshape(len(KERNEL_SIZES), -1, len(LANGUAGES))
    grams: list[str] = []
    adds = []
    for size, conv, weight in zip(KERNEL_SIZES, model.convs, weights, strict=True):
        seen = Counter(gram for w in words for gram in {f" {w} "[i : i + size] for i in range(len(w) + 3 - size)})
        common = [gram for gram, count in seen.items() if count >= max(2, len(words) / 1000)]
        numbers = np.array([[alphabet.index(letter) for letter in gram] for gram in common])
        grams += common
        adds.append(np.maximum(np.asarray(conv(model.embed(numbers)))[:, 0], 0) @ weight)
    logits = np.concatenate(adds)
    telling = []
    for label in range(len(LANGUAGES)):
        margin = logits[:, label] - np.delete(logits, label, axis=1).max(axis=1)
        row: list[tuple[str, float]] = []
        for i in np.argsort(-margin):
            if len(row) < shown and not any(grams[i] in gram or gram in grams[i] for gram, _ in row):
                row.append((grams[i], float(margin[i])))
        telling.append(row)
    return telling


def draw(
    path: Path, curves: Curves, baselines: dict[str, float], shares: np.ndarray, telling: list[list[tuple[str, float]]]
) -> None:
    """Write the picture; `shares` is the confusion matrix in percent, rows the true language."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(LANGUAGES.values())
    figure = Figure(figsize=(12, 10), layout="constrained", dpi=110)
    axes: Any = figure.subplot_mosaic([["curves", "confusion"], ["ngrams", "ngrams"]], height_ratios=[1.15, 1])
    figure.suptitle("The language of a single word, told by a TextCNN from its letters", fontsize=14)

    a, epochs = axes["curves"], range(1, len(curves.test) + 1)
    a.plot(epochs, [100 * v for v in curves.train], "o--", color="#56B4E9", label="TextCNN, words trained on")
    a.plot(epochs, [100 * v for v in curves.test], "o-", color="#0072B2", linewidth=2, label="TextCNN, held-out words")
    for (name, value), colour in zip(baselines.items(), ("#8c8c8c", "#E69F00", "#D55E00"), strict=True):
        a.axhline(100 * value, color=colour, label=f"{name}, held-out words", linestyle=":", linewidth=2)
    a.set(xlabel="epochs", ylabel="words told right, %", ylim=(0, 100), title="Learning curves and baselines")
    a.xaxis.set_major_locator(MaxNLocator(integer=True))
    a.legend(loc="center right", bbox_to_anchor=(1, 0.33), fontsize=9)
    a.spines[["top", "right"]].set_visible(False)

    a = axes["confusion"]
    image = a.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        a.text(column, row, f"{share:.0f}", ha="center", va="center", color="white" if share > 50 else "black")
    a.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    a.set_yticks(range(len(names)), names)
    a.set(xlabel="taken for", ylabel="is", title="Held-out words: who is taken for whom")
    figure.colorbar(image, ax=a, label="% of the words of a language", shrink=0.85)

    a = axes["ngrams"]
    margins = np.array([[margin for _, margin in row] for row in telling])
    a.imshow(margins, cmap="Blues", aspect="auto", vmin=0, vmax=1.6 * margins.max())  # light, under black letters
    for row, cells in enumerate(telling):
        for column, (gram, margin) in enumerate(cells):
            a.text(column, row - 0.1, gram.replace(" ", "_"), ha="center", va="center", family="monospace", fontsize=13)
            a.text(column, row + 0.42, f"{margin:+.1f}", ha="center", va="bottom", fontsize=7, color="#404040")
    a.set_yticks(range(len(names)), names)
    a.set(
        xticks=[], title="The n-grams that its filters take for the best signs, and their lead in logits (_: word end)"
    )
    a.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def run(words: int, epochs: int, seed: int, out: Path) -> Report:
    """Train, test, draw."""
    import jax  # here, so that --help is quick
    from sklearn.metrics import confusion_matrix

    train, test = load(words)
    device = jax.devices()[0]
    print(
        f"{len(train.text)} words to train on, {len(test.text)} held out, {len(LANGUAGES)} languages; "
        f"device: {device.platform} ({device.device_kind}), jax {jax.__version__}",
        flush=True,
    )
    start = time.perf_counter()
    alphabet = " " + "".join(sorted(set("".join(train.text))))  # the space stands for word ends and unknown letters
    model, curves, predicted = train_network(train, test, alphabet, epochs, seed)
    print(f"{epochs} epochs in {time.perf_counter() - start:.0f} s, compilation included", flush=True)

    commonest = np.bincount(train.labels).argmax()
    baselines = {
        "the commonest language": float(np.mean(test.labels == commonest)),
        "logistic regression, single letters": logistic_regression(train, test, 1),
        "logistic regression, 1- to 3-grams": logistic_regression(train, test, 3),
    }
    print("held-out words told right:")
    for name, accuracy in {**baselines, "TextCNN": curves.test[-1]}.items():
        print(f"  {name:36}{100 * accuracy:5.1f} %")
    shares = 100 * confusion_matrix(test.labels, predicted, labels=range(len(LANGUAGES)), normalize="true")
    draw(out, curves, baselines, shares, telling_ngrams(model, train.text, alphabet, 9))
    print(f"wrote {out}")
    return Report(curves.test[-1], baselines, out)


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The command line as arguments of `run`."""
    opening, details = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(prog="python -m examples.text", description=opening, epilog=details)
    parser.add_argument("--words", type=positive, default=4000, help="of each language (default: %(default)s)")
    parser.add_argument("--epochs", type=positive, default=12, help="passes over them (default: %(default)s)")
    parser.add_argument("--seed", type=whole, default=0, help="of weights and batches (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/text.png"), help="the picture (default: %(default)s)")
    options = vars(parser.parse_args(argv))
    if options["words"] < FEWEST:
        parser.error(f"argument --words: {options['words']} is too few for logistic regression, type {FEWEST} or more")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(**parse(argv))


if __name__ == "__main__":
    leave_at_ctrl_c("stopped by Ctrl-C")
    main()
