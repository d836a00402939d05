"""A reward in five lines: the sentiment of an answer by VADER's word list (Hutto and Gilbert 2014), in [-1, 1].

pip install ".[sentiment]" -c constraints.txt
rlhf ppo smollm2-135m-sentiment
"""

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

analyzer = SentimentIntensityAnalyzer()


def positive(completions: list, **columns) -> list[float]:
    """Returns the compound score of each completion: text, or a list with one message."""
    texts = [completion if isinstance(completion, str) else completion[0]["content"] for completion in completions]
    return [analyzer.polarity_scores(text)["compound"] for text in texts]
