"""A language model behind an OpenAI-compatible URL as a judge of pairs.

Language models prefer an answer for its place (Zheng et al. 2023, arXiv 2306.05685, section 3.4), so each pair is asked
in both orders. If the two verdicts differ, the pair is a tie. `consistency` tells how often they agree.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from rlhf.data.encode import Prompt, prompt_text
from rlhf.errors import InputError
from rlhf.evaluation.chat_api import ChatServer, Messages, Reply
from rlhf.evaluation.kept import KeptResults, content_key
from rlhf.evaluation.specs import Spec
from rlhf.evaluation.verdicts import PairwiseJudge
from rlhf.models.contracts import text_digest

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("llm_judge.txt")
PLACEHOLDERS = ("prompt", "response_a", "response_b")
VERDICT = re.compile(r"^\W*verdict\W*:\W*(A|B|tie)\b\W*$", re.IGNORECASE | re.MULTILINE)
VALUES = {"a": 1.0, "b": 0.0, "tie": 0.5}
REMINDER = "Your answer does not end with one of the lines `Verdict: A`, `Verdict: B`, `Verdict: tie`. Write that line."
BYTES_PER_TOKEN = 4  # of English text, about
OPTIONS = (
    *("name", "model", "template", "key", "concurrency", "requests_per_minute", "timeout", "retries", "temperature"),
    *("max_tokens", "input_price", "output_price"),
)


class LLMJudge(PairwiseJudge):
    """Asks a model which of two answers is better.

    Args:
        server: the model.
        name: of the judge.
        template: file with the instruction, which holds {prompt}, {response_a} and {response_b} and asks for a last
            line `Verdict: A`, `Verdict: B` or `Verdict: tie`.
        folder: of the file `<name>.jsonl` with all answers, from which a run that was killed goes on.
        temperature: None leaves it to the server.
        max_tokens: of an answer; models that reason at length need more.
        prices: US dollars per million tokens of input and of output; None if they are unknown.

    Raises:
        InputError: no such template, or one without a placeholder or without the form of the verdict.
    """

    def __init__(
        self,
        server: ChatServer,
        name: str = "llm",
        template: str | Path = TEMPLATE,
        folder: str | Path | None = None,
        temperature: float | None = 0.0,
        max_tokens: int = 1024,
        prices: tuple[float, float] | None = None,
    ):
        self.server, self.prices = server, prices
        self.template = read_template(template, name)
        options = {"temperature": temperature, "max_tokens": max_tokens}
        self.options = {option: value for option, value in options.items() if value is not None}
        self.kept = KeptResults(Path(folder) / f"{name}.jsonl" if folder else None)
        instruction = f"{Path(template).name} ({text_digest(self.template)})"
        super().__init__(
            name,
            f"The language model {server.model} at {server.place} with the instruction {instruction}, asked in both "
            "orders; a disagreement is a tie.",
        )

    def prefer(
        self, prompts: Sequence[Prompt], responses_a: Sequence[str], responses_b: Sequence[str]
    ) -> list[float | None]:
        """Returns 1.0, 0.5 or 0.0 for each pair; None for one without an answer in both orders. Equal texts are a tie.

        Only what is not known yet is asked. The number of calls and their cost are logged before the first.

        Raises:
            InputError: see `ChatServer.ask`; the answers that came before are kept.
        """
        pairs = list(zip(prompts, responses_a, responses_b, strict=True))
        both = [order for prompt, a, b in pairs if a != b for order in ((prompt, a, b), (prompt, b, a))]
        texts = {self._key(text): text for order in both for text in [self._fill(*order)]}
        new: dict[str, Messages] = {
            key: [{"role": "user", "content": text}] for key, text in texts.items() if key not in self.kept
        }
        if new:
            self._announce(new, kept=len(texts) - len(new))
            failed = self.server.ask(new, can_read, self._keep, REMINDER, **self.options)
            self._report(new, failed)
        return [self._preference(*pair) for pair in pairs]

    def consistency(
        self, prompts: Sequence[Prompt], responses_a: Sequence[str], responses_b: Sequence[str]
    ) -> list[float | None]:
        """Returns 1.0 for each pair with the same verdict in both orders, 0.0 if not; None without two verdicts."""
        orders = [self._orders(*pair) for pair in zip(prompts, responses_a, responses_b, strict=True)]
        return [None if both is None else float(both[0] == both[1]) for both in orders]

    def _preference(self, prompt: Prompt, a: str, b: str) -> float | None:
        if a == b:
            return 0.5
        both = self._orders(prompt, a, b)
        return None if both is None else both[0] if both[0] == both[1] else 0.5

    def _orders(self, prompt: Prompt, a: str, b: str) -> tuple[float, float] | None:
        """Returns how good a is against b where it comes first, and where it comes second."""
        first, second = self._key(self._fill(prompt, a, b)), self._key(self._fill(prompt, b, a))
        if a == b or first not in self.kept or second not in self.kept:
            return None
        return self.kept[first]["verdict"], 1 - self.kept[second]["verdict"]

    def _key(self, text: str) -> str:
        return content_key(self.server.url, self.server.model, self.options, text)

    def _fill(self, prompt: Prompt, a: str, b: str) -> str:
        values: dict[str, str] = dict(zip(PLACEHOLDERS, (prompt_text(prompt), a, b), strict=True))
        return _PLACEHOLDER.sub(lambda match: values[match[1]], self.template)  # one pass: answers may hold {prompt}

    def _keep(self, key: str, reply: Reply) -> None:
        verdict, tokens = read_verdict(reply.text), [reply.tokens_in, reply.tokens_out]
        self.kept.add(key, {"verdict": verdict, "text": reply.text, "tokens": tokens})

    def _announce(self, new: dict[str, Messages], kept: int) -> None:
        tokens_in = sum(len(messages[0]["content"].encode()) for messages in new.values()) // BYTES_PER_TOKEN
        tokens_out = len(new) * self.options["max_tokens"]
        logger.info(
            "judge %s: %d calls to %s (%d answers are kept): about %d tokens of input, at most %d of output%s",
            *(self.name, len(new), self.server.model, kept, tokens_in, tokens_out),
            self._cost(", about ${:.2f} of input and at most ${:.2f} of output", tokens_in, tokens_out)
            or "; input_price and output_price would give the cost",
        )

    def _report(self, new: dict[str, Messages], failed: dict[str, str]) -> None:
        used = [self.kept[key]["tokens"] for key in new if key in self.kept]
        tokens = [sum(column) for column in zip(*used, strict=True)] or [0, 0]
        cost = self._cost(", ${:.2f} and ${:.2f}", *tokens)
        logger.info("judge %s used %d tokens of input and %d of output%s", self.name, *tokens, cost)
        if failed:
            logger.warning(
                "judge %s: %d of %d calls stayed without a verdict, the last one: %s; run again to ask them again",
                *(self.name, len(failed), len(new), list(failed.values())[-1]),
            )

    def _cost(self, form: str, *tokens: int) -> str:
        if self.prices is None:
            return ""
        return form.format(*(count * price / 1e6 for count, price in zip(tokens, self.prices, strict=True)))


_PLACEHOLDER = re.compile(rf"\{{({'|'.join(PLACEHOLDERS)})\}}")


def read_template(path: str | Path, name: str = "llm") -> str:
    """Returns the text of a template; see `LLMJudge`."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Judge {name} has the template {path}, which is no readable text. Give another.") from error
    if missing := [f"{{{word}}}" for word in PLACEHOLDERS if f"{{{word}}}" not in text]:
        raise InputError(f"{path} lacks the placeholder {' and '.join(missing)} of a judge's template. Add it.")
    if "verdict:" not in text.lower():
        raise InputError(f"{path} does not ask for a last line `Verdict: A`, `Verdict: B` or `Verdict: tie`. Add that.")
    return text


def can_read(text: str) -> bool:
    return read_verdict(text) is not None


def read_verdict(text: str) -> float | None:
    """Returns 1.0 for a last verdict A, 0.0 for B, 0.5 for a tie; None for an answer without one."""
    found = VERDICT.findall(text)
    return VALUES[found[-1].lower()] if found else None


def llm_judge(spec: Spec, name: str, folder: str | Path | None) -> LLMJudge:
    """Returns the judge of `llm=<url>,model=<name>,...`, whose server has answered.

    Raises:
        InputError: an option that is missing or wrong, no key, or a server that does not answer.
    """
    options = spec.options
    if "model" not in options:
        raise InputError("Judge llm needs the model's name on the server. Write llm=<url>,model=<name>.")
    if ("input_price" in options) != ("output_price" in options):
        raise InputError("Judge llm has one of input_price and output_price. Give both, in dollars per million tokens.")
    prices = (spec.number("input_price", 0, 0), spec.number("output_price", 0, 0)) if "input_price" in options else None
    server = ChatServer(
        str(spec.value),
        options["model"],
        f"Judge {name}",
        options.get("key"),
        spec.whole("concurrency", 8),
        spec.number("requests_per_minute", 0, 0.1) if "requests_per_minute" in options else None,
        spec.number("timeout", 60, 0.1),
        spec.whole("retries", 6, low=0),
    )
    temperature = None if options.get("temperature") == "none" else spec.number("temperature", 0, 0)
    max_tokens = spec.whole("max_tokens", 1024)
    judge = LLMJudge(server, name, options.get("template", TEMPLATE), folder, temperature, max_tokens, prices)
    server.check()
    return judge
