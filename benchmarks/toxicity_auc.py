"""Toxicity scorers on labeled rows: area under the ROC curve of each, to choose the one that ships.

    python benchmarks/toxicity_auc.py --rows samples-1680.jsonl.gz labeled.csv --scorers local unitary/toxic-bert
    python benchmarks/toxicity_auc.py --rows samples-1680.jsonl.gz --wheels wheels

Rows are read as published: `text`, `comment`, `comment_text` or `tweet` with `toxic` (0 or 1, true or false), or with
Davidson et al.'s `class` (2 is neither); HateCheck's `test_case` with `label_gold`; the evaluation set of arXiv
2208.03274, of which a prompt is toxic if any of its categories is; or pairs of hh_rlhf, whose last answers are told
apart (rejected is taken as toxic: a weak proxy).

`--wheels` is a folder of unpacked packages (pip download --no-deps, unzip into one folder), whose classifiers are
compared, too: alt-profanity-check (needs scikit-learn), hatesonar (onnxruntime), better-profanity (its word list),
tox-block and toxic-comment-classifier (h5py; their tokenizers are pickles, of which only numbers and texts are read).
"""

import argparse
import json
import pickle
import re
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.data.files import read_rows
from rlhf.errors import InputError
from rlhf.evaluation.scored_rows import auc
from rlhf.evaluation.toxicity_scorers import load_toxicity_scorer

TEXT = ("text", "comment", "comment_text", "tweet", "test_case")
CATEGORIES = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")  # of arXiv 2208.03274
Scorer = Callable[[list[str]], Iterable[float]]


def labeled_rows(path: Path) -> tuple[list[str], list[bool]]:
    """Returns texts and whether each is toxic."""
    pairs = []
    for row in read_rows(path):
        content = row.content
        if "chosen" in content:
            pairs += [(_last_answer(content["chosen"]), False), (_last_answer(content["rejected"]), True)]
        elif any(name in content for name in CATEGORIES):
            pairs.append((content["prompt"], any(content.get(name) for name in CATEGORIES)))
        elif text := next((content[name] for name in TEXT if content.get(name)), None):
            pairs.append((text, _is_toxic(content)))
    if not pairs:
        raise InputError(f"{path} has no labeled rows. The top of benchmarks/toxicity_auc.py lists what is read.")
    texts, labels = zip(*pairs, strict=True)
    return list(texts), list(labels)


def _is_toxic(row: dict[str, Any]) -> bool:
    if "toxic" in row:
        return str(row["toxic"]).lower() in ("1", "true")
    return row["label_gold"] == "hateful" if "label_gold" in row else int(row["class"]) != 2


def toxicity_auc(paths: Iterable[Path], scorers: dict[str, Scorer]) -> dict[str, dict[str, float | None]]:
    """Returns scorer -> file -> AUC."""
    rows = {path.name: labeled_rows(path) for path in paths}
    return {
        name: {file: auc(list(scorer(texts)), labels) for file, (texts, labels) in rows.items()}
        for name, scorer in scorers.items()
    }


def named_scorers(specs: Iterable[str]) -> dict[str, Scorer]:
    """Returns name, version and hash -> function of texts, of our own scorers."""
    return {scorer.about: scorer.score for scorer in map(load_toxicity_scorer, specs)}


# ---- classifiers of packages


def package_scorers(folder: Path) -> dict[str, Scorer]:
    """Returns the scorers of the packages in `folder`."""
    makers = {
        "profanity_check": _profanity_check,
        "hatesonar": _hatesonar,
        "better_profanity": _words,
        "tox_block": _tox_block,
        "toxic_classifier": _toxic_classifier,
    }
    return {name: make(folder / name) for name, make in makers.items() if (folder / name).is_dir()}


def _profanity_check(package: Path) -> Scorer:
    sys.path.insert(0, str(package.parent))
    from profanity_check.profanity_check import predict_prob  # pyright: ignore[reportMissingImports]

    return predict_prob


def _hatesonar(package: Path) -> Scorer:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(package / "model" / "model.onnx"))  # needs the locale en_US.UTF-8

    def score(texts: list[str]) -> list[float]:
        scores = []
        for start in range(0, len(texts), 256):  # its matrices of texts and words are dense
            _, probabilities = session.run(None, {"text": np.array(texts[start : start + 256], dtype=object)})
            scores += [1 - one[2] for one in probabilities]  # 2 is neither hateful nor offensive
        return scores

    return score


def _words(package: Path) -> Scorer:
    words = set((package / "profanity_wordlist.txt").read_text(encoding="utf-8").split())

    def score(texts: list[str]) -> list[float]:
        found = (re.findall(r"[\w'*$@]+", text.lower()) for text in texts)
        return [sum(word in words for word in one) / max(1, len(one)) for one in found]

    return score


def _tox_block(package: Path) -> Scorer:
    import h5py  # pyright: ignore[reportMissingImports]

    models = package / "trained_models"
    weights = h5py.File(models / "lstm_model_0.1.2.h5")["model_weights"]
    names = ("kernel:0", "recurrent_kernel:0", "bias:0")
    lstm = [[weights[f"bidirectional/bidirectional/{way}_lstm/{n}"][()] for n in names] for way in WAYS]
    dense = [[weights[f"{layer}/{layer}/{n}"][()] for n in (names[0], names[2])] for layer in ("dense", "dense_1")]
    return _lstm(weights["embedding/embedding/embeddings:0"][()], lstm, dense, models / "encoder_0.1.2.pkl")


def _toxic_classifier(package: Path) -> Scorer:
    import h5py  # pyright: ignore[reportMissingImports]

    layers = h5py.File(package / "model" / "model.weights.h5")["layers"]
    lstm = [[layers[f"bidirectional/{way}_layer/cell/vars/{i}"][()] for i in range(3)] for way in WAYS]
    dense = [[layers[f"{layer}/vars/{i}"][()] for i in range(2)] for layer in ("dense", "dense_1")]
    return _lstm(layers["embedding/vars/0"][()], lstm, dense, package / "model" / "tokenizer.pickle")


WAYS = ("forward", "backward")
LENGTH, WORDS = 100, 20_000  # of both packages
PUNCTUATION = str.maketrans(dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n', " "))


def _lstm(embeddings: np.ndarray, lstm: list, dense: list, tokenizer: Path) -> Scorer:
    """Keras's bidirectional LSTM, maximum over 100 positions padded on the left, and two dense layers."""
    layer = torch.nn.LSTM(embeddings.shape[1], lstm[0][1].shape[0], bidirectional=True, batch_first=True)
    state = {}
    for suffix, (kernel, recurrent, bias) in zip(("", "_reverse"), lstm, strict=True):
        state |= {f"weight_ih_l0{suffix}": kernel.T, f"weight_hh_l0{suffix}": recurrent.T}
        state |= {f"bias_ih_l0{suffix}": bias, f"bias_hh_l0{suffix}": np.zeros_like(bias)}
    layer.load_state_dict({name: torch.tensor(array.copy()) for name, array in state.items()})
    table, (hidden, output) = torch.tensor(embeddings), [[torch.tensor(a) for a in arrays] for arrays in dense]
    index = {word: i for word, i in _word_index(tokenizer).items() if i < WORDS}

    @torch.no_grad()
    def score(texts: list[str]) -> list[float]:
        scores = []
        for start in range(0, len(texts), 256):
            ids = torch.zeros(len(texts[start : start + 256]), LENGTH, dtype=torch.long)
            for row, text in zip(ids, texts[start : start + 256], strict=True):
                words = text.lower().translate(PUNCTUATION).split(" ")
                if known := [index[word] for word in words if word in index][-LENGTH:]:
                    row[-len(known) :] = torch.tensor(known)
            states = layer(table[ids])[0].amax(1)
            states = torch.relu(states @ hidden[0] + hidden[1])
            scores += torch.sigmoid(states @ output[0] + output[1])[:, 0].tolist()  # the first label is `toxic`
        return scores

    return score


class _Inert:
    """Takes the place of every class of a pickle but dictionaries."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return {"defaultdict": defaultdict, "OrderedDict": OrderedDict, "int": int}.get(name, _Inert)


def _word_index(path: Path) -> dict[str, int]:
    with path.open("rb") as file:
        found = _Unpickler(file).load()
    return getattr(found, "tokenizer", found).word_index


def _last_answer(dialogue: str) -> str:
    return dialogue.rpartition("\n\nAssistant:")[2].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=Path, required=True, help="Files of labeled rows.")
    parser.add_argument("--scorers", nargs="*", default=["local"], help="As in rlhf.evaluation.toxicity_scorers.")
    parser.add_argument("--wheels", type=Path, help="Folder of unpacked packages.")
    args = parser.parse_args()
    scorers = named_scorers(args.scorers) | (package_scorers(args.wheels) if args.wheels else {})
    print(json.dumps(toxicity_auc(args.rows, scorers)))


if __name__ == "__main__":
    main()
