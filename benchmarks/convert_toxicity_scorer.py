"""Converts the classifier of alt-profanity-check to safetensors and JSON: the scorer `local` of rlhf/evaluation.

    pip install alt-profanity-check==1.9.1
    python benchmarks/convert_toxicity_scorer.py

The package (MIT) holds pickles: a tf-idf vectorizer and five linear support vector machines with Platt's calibration,
which scikit-learn loads. What comes out ships with the library, so this runs once per version of the package. It
compares both on the texts of `--texts` (one a line) or on three examples, and writes nothing if they differ by 1e-6.
"""

import argparse
import json
from importlib import metadata, resources
from pathlib import Path
from tempfile import TemporaryDirectory

import joblib
import numpy as np
from safetensors.numpy import save_file

from rlhf.evaluation.toxicity_scorers import LOCAL_FOLDER, LocalScorer

PACKAGE = "alt-profanity-check"
EXAMPLES = ("Have a nice day.", "You are an idiot, and I HATE you!", "")


def convert(vectorizer, model, folder: Path) -> None:
    """Writes weights.safetensors and vocabulary.json."""
    words = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)
    machines = [(one.estimator, one.calibrators[0]) for one in model.calibrated_classifiers_]
    tensors = {
        "idf": vectorizer.idf_.astype(np.float32),
        "coefficients": np.stack([machine.coef_[0] for machine, _ in machines]).astype(np.float32),
        "intercepts": np.array([machine.intercept_[0] for machine, _ in machines]),
        "slopes": np.array([calibrator.a_ for _, calibrator in machines]),
        "offsets": np.array([calibrator.b_ for _, calibrator in machines]),
    }
    about = {"source": PACKAGE, "version": metadata.version(PACKAGE), "license": "MIT"}
    save_file(tensors, folder / "weights.safetensors", metadata=about)
    text = json.dumps(words, ensure_ascii=False, separators=(",", ":"))
    (folder / "vocabulary.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="Text file to compare on, one text a line.")
    args = parser.parse_args()
    data = resources.files("profanity_check") / "data"
    vectorizer, model = (joblib.load(data / name) for name in ("vectorizer.joblib", "model.joblib"))
    texts = args.texts.read_text(encoding="utf-8").splitlines() if args.texts else list(EXAMPLES)
    with TemporaryDirectory() as draft:
        convert(vectorizer, model, Path(draft))
        ours = LocalScorer(Path(draft)).score(texts)
        error = np.abs(model.predict_proba(vectorizer.transform(texts))[:, 1] - ours).max()
        print(f"Largest difference on {len(texts)} texts: {error:.1e}")
        if error > 1e-6:
            raise SystemExit("The conversion differs from the original. Nothing was written.")
        for path in Path(draft).iterdir():
            (LOCAL_FOLDER / path.name).write_bytes(path.read_bytes())
    print(f"Wrote {LOCAL_FOLDER}.")


if __name__ == "__main__":
    main()
