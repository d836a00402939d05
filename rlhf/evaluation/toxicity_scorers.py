"""Scorers of toxicity: text -> probability in [0, 1] that a reader finds it rude, disrespectful or unreasonable.

A scorer is named by one line:

    local                                   the linear classifier that ships with this library
    unitary/toxic-bert                      a sequence classifier: folder or Hub id, weights in safetensors
    runs/my-classifier,label=offensive      the same, where its config does not tell which label means toxic
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy.special import expit
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from rlhf.errors import InputError, first_line
from rlhf.models.loading import resolve_model_name
from rlhf.runs.digests import base_identity, file_digest, json_digest
from rlhf.runs.processes import process_state
from rlhf.tensors import length_batches

LOCAL_FOLDER = Path(__file__).parent / "toxicity_local"
WORD = re.compile(r"(?u)\b\w\w+\b")  # of the classifier's vectorizer
# Labels that mean toxic, in order of preference. LABEL_1 says nothing, so it is not one of them.
TOXIC_LABELS = ("toxic", "toxicity", "toxic_comment", "offensive", "hateful", "hate", "abusive", "harmful", "unsafe")


class ToxicityScorer(Protocol):
    """Scores texts.

    Attributes:
        about: name, version and hash of the weights, printed beside every number.
    """

    about: str

    def score(self, texts: Sequence[str]) -> list[float]:
        """Returns the toxicity of each text, in [0, 1]."""
        ...


def load_toxicity_scorer(spec: str = "local") -> ToxicityScorer:
    """Returns the scorer that a line names, see the head of this module. A classifier's weights are not loaded yet.

    Raises:
        InputError: an unknown option, no such classifier, or no label that means toxic.
    """
    name, *options = spec.split(",")
    pairs: dict[str, str] = {key: value for key, _, value in (option.partition("=") for option in options)}
    if unknown := sorted(pairs.keys() - {"label"}):
        raise InputError(f"Toxicity scorer {spec!r} has the unknown option {unknown[0]!r}. It may have label=NAME.")
    if name == "local":
        if pairs:
            raise InputError("Toxicity scorer local takes no options. Pass local alone.")
        return LocalScorer()
    return ClassifierScorer(name, pairs.get("label"))


class LocalScorer:
    """Linear classifier of a bag of words: the mean of five calibrated support vector machines.

    With x the tf-idf vector of a text over the vocabulary, scaled to length 1, machine k gives

        p_k = 1 / (1 + exp(a_k (w_k . x + c_k) + b_k))        (Platt 1999)

    Weights and vocabulary are those of the package alt-profanity-check (benchmarks/convert_toxicity_scorer.py).
    """

    def __init__(self, folder: Path = LOCAL_FOLDER) -> None:
        weights, vocabulary = folder / "weights.safetensors", folder / "vocabulary.json"
        with safe_open(weights, "np") as file:
            source = file.metadata()
        tensors = load_file(weights)
        self.index = {word: i for i, word in enumerate(json.loads(vocabulary.read_text(encoding="utf-8")))}
        self.idf = tensors["idf"].astype(float)  # [V]
        self.coefficients = tensors["coefficients"].astype(float)  # [5, V]
        self.intercepts, self.slopes, self.offsets = (
            tensors[name].astype(float) for name in ("intercepts", "slopes", "offsets")
        )  # [5]
        digest = json_digest([file_digest(weights), file_digest(vocabulary)])
        self.about = f"local ({source['source']} {source['version']}, weights {digest})"

    def score(self, texts: Sequence[str]) -> list[float]:
        """Returns the mean of p_k for each text. A text without a known word gets what the intercepts say."""
        return [self._score(text) for text in texts]

    def _score(self, text: str) -> float:
        counts = Counter(self.index[word] for word in WORD.findall(text.lower()) if word in self.index)
        words = np.fromiter(counts.keys(), dtype=int, count=len(counts))
        x = np.fromiter(counts.values(), dtype=float, count=len(counts)) * self.idf[words]
        norm = np.linalg.norm(x)
        margins = self.coefficients[:, words] @ x / (norm or 1.0) + self.intercepts  # [5]
        return float(expit(-(self.slopes * margins + self.offsets)).mean())


class ClassifierScorer:
    """A sequence classifier of transformers, which is in memory only while it scores.

    The score is the probability of the toxic label: the sigmoid of its logit if labels do not exclude each other
    (`problem_type` in config.json) or if it is the only one, else the softmax.
    """

    batch_size = 32

    def __init__(self, name: str, label: str | None = None) -> None:
        self.name = name
        try:
            self.folder = resolve_model_name(name)
            self.config: Any = AutoConfig.from_pretrained(self.folder)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            raise InputError(
                f"Toxicity scorer {name} cannot be loaded ({first_line(error)}). Pass local, or the folder or Hub id "
                "of a sequence classifier."
            ) from error
        if not any("SequenceClassification" in one for one in self.config.architectures or ()):
            raise InputError(f"Toxicity scorer {name} is not a sequence classifier. Pass local or another model.")
        self.label = toxic_label(name, self.config.id2label, label)
        identity = base_identity(self.folder)
        weights = identity["weights"] or identity["revision"] or "unknown"
        self.about = f"{name} (label {self.config.id2label[self.label]}, weights {weights})"

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[float]:
        """Returns the probability of the toxic label; texts are cut at the classifier's context.

        Raises:
            InputError: the weights are not there, or not in safetensors.
        """
        try:
            model: Any = AutoModelForSequenceClassification.from_pretrained(self.folder, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise InputError(
                f"The weights of toxicity scorer {self.name} cannot be loaded ({first_line(error)}). Pass a model with "
                "weights in model.safetensors; pickles are not read."
            ) from error
        model = model.eval().to(process_state().device)
        alone = self.config.num_labels == 1 or self.config.problem_type == "multi_label_classification"
        limit = min(self.tokenizer.model_max_length, getattr(self.config, "max_position_embeddings", None) or 512, 512)
        empty = [self.tokenizer.eos_token_id or 0]  # of a text without tokens
        encoded = [self.tokenizer(text, truncation=True, max_length=limit)["input_ids"] or empty for text in texts]
        scores = {}
        for batch in length_batches([len(ids) for ids in encoded], self.batch_size):
            inputs = self.tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt")
            logits = model(**inputs.to(model.device)).logits.float()  # [B, L]
            probabilities = logits.sigmoid() if alone else logits.softmax(-1)
            scores |= dict(zip(batch, probabilities[:, self.label].tolist(), strict=True))
        return [scores[i] for i in range(len(texts))]


def toxic_label(name: str, id2label: dict[int, str], label: str | None) -> int:
    """Returns the index of the label that means toxic.

    Args:
        id2label: of the classifier's config.json.
        label: name or index that the user gave; None looks for a name of TOXIC_LABELS.

    Raises:
        InputError: there is no such label, or none is known to mean toxic.
    """
    names = {str(text).lower().replace(" ", "_"): int(number) for number, text in id2label.items()}
    known = ", ".join(map(str, id2label.values()))
    if label is not None:
        found = names.get(label.lower(), int(label) if label.isdecimal() and int(label) in names.values() else None)
        if found is None:
            raise InputError(f"Toxicity scorer {name} has no label {label}; its labels are {known}. Pass one of them.")
        return found
    if len(names) == 1:
        return 0
    for toxic in TOXIC_LABELS:
        if toxic in names:
            return names[toxic]
    raise InputError(
        f"Toxicity scorer {name} has the labels {known}, and none is known to mean toxic. Add ,label=NAME to it."
    )
