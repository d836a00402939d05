"""Finds personal data in text that has a recognizable form, such as telephone numbers.

phonenumbers (Google's rules for every country) recognizes telephone numbers, python-stdnum verifies the check digits of
cards and accounts; both are small, maintained and work offline. Names and postal addresses have no form: finding them
takes a language model, and a person who looks at the data.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlhf.errors import InputError

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]+)++")
CARD = re.compile(r"(?<!\d)[3-6](?:[ -]?\d){12,18}(?!\d)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
US_SSN = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
IP_ADDRESS = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)")
LOCAL_NUMBER = re.compile(r"[\d\s()+-]*\d[-)][\d\s()+-]*")  # not "6.67 x 10-11", where x reads as an extension
SEVEN_DIGITS = re.compile(r"\d(?:\D{0,3}\d){6}")  # the shortest telephone number, however it is written


@dataclass(frozen=True)
class PersonalSpan:
    """Personal data at text[start:end]."""

    kind: str
    start: int
    end: int


class PersonalData:
    """Finds personal data; one object for all texts, since the libraries take a moment to load.

    Args:
        region: country code (US, DE, ...) of telephone numbers that are written without one.

    Raises:
        InputError: the libraries are not installed, or the region is unknown.
    """

    def __init__(self, region: str = "US"):
        try:
            import phonenumbers
            from stdnum import iban, luhn
            from stdnum.us import ssn
        except ImportError as error:
            raise InputError(
                "Finding personal data needs two packages. Run pip install 'instruct-rlhf[data]', "
                "or keep personal data with --personal_data keep."
            ) from error
        if region not in phonenumbers.SUPPORTED_REGIONS:
            raise InputError(f"phone_region {region} is not a country code. Set it to one, such as US or DE.")
        self.region = region
        self._phonenumbers = phonenumbers
        self._patterns: list[tuple[str, re.Pattern, Callable[[str], bool]]] = [
            ("email address", EMAIL, lambda text: True),
            ("card number", CARD, lambda text: luhn.is_valid(re.sub("[ -]", "", text))),
            ("bank account", IBAN, iban.is_valid),
            ("social security number", US_SSN, ssn.is_valid),
            ("IP address", IP_ADDRESS, _is_public_address),
        ]

    def find(self, text: str) -> list[PersonalSpan]:
        """Returns all personal data in order, without overlaps."""
        if "@" not in text and not any(map(str.isdigit, text)):
            return []  # every kind has an @ or a digit
        spans: list[PersonalSpan] = []
        for candidate in self._candidates(text):
            if all(candidate.end <= other.start or candidate.start >= other.end for other in spans):
                spans.append(candidate)
        return sorted(spans, key=lambda span: span.start)

    def _candidates(self, text: str) -> Iterator[PersonalSpan]:
        for kind, pattern, is_valid in self._patterns:
            for match in pattern.finditer(text):
                end = _valid_end(match.group(), is_valid)
                if end:
                    yield PersonalSpan(kind, match.start(), match.start() + end)
        if SEVEN_DIGITS.search(text):
            yield from self._telephones(text)

    def _telephones(self, text: str) -> Iterator[PersonalSpan]:
        numbers = self._phonenumbers
        for match in numbers.PhoneNumberMatcher(text, self.region, leniency=numbers.Leniency.POSSIBLE):
            # A local number (555-0142) is never valid by itself; its hyphen tells it from other numbers.
            if numbers.is_valid_number(match.number) or LOCAL_NUMBER.fullmatch(match.raw_string):
                yield PersonalSpan("telephone number", match.start, match.end)


def mask(text: str, spans: list[PersonalSpan]) -> str:
    """Returns the text with each span replaced by its kind: "Write to [email address]."."""
    for span in reversed(spans):
        text = f"{text[: span.start]}[{span.kind}]{text[span.end :]}"
    return text


def _valid_end(text: str, is_valid: Callable[[str], bool]) -> int:
    """Returns the length of the longest valid part from the start, cut at spaces; 0 if there is none."""
    while not is_valid(text):
        text, space, _ = text.rpartition(" ")
        if not space:
            return 0
    return len(text)


def _is_public_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False
