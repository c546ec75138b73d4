"""The spec grammar: the string that names a compressor, and back.

::

    spec    = chain [ "+" chain ]          a codec, or a coarse one and the finer one that refines its answers
    chain   = stage { "," stage }          transforms first, one quantizer last
    stage   = form [ "(" option { "," option } ")" ]
    form    = a name with numbers, as the class spells it: PCA192, PQ48x8, SAQ1.5, PCA50%
    option  = value | name "=" value       constructor arguments; a bare name means true

A stage class lists its `forms`, such as ``("LVQ{bits}x{residual_bits}", "LVQ{bits}")``; the fields in braces are
constructor arguments. What a form does not spell is printed as an option when it differs from its default. Names are
case-sensitive; blanks around stages and options are ignored.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from string import Formatter
from typing import TYPE_CHECKING, Any

from ragq.errors import InvalidArgumentError

if TYPE_CHECKING:
    from ragq.compressors.base import Compressor, Stage

__all__ = ["MAX_LENGTH", "form_shape", "from_spec", "parameters", "print_stage"]

MAX_LENGTH = 1000
NUMBER = r"[0-9]+(?:\.[0-9]+)?%?"
WORDS = {"true": True, "false": False, "none": None}
USUAL_NUMBERS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192)  # tried for a suggestion when the given number is impossible


# printing


def fields(form: str) -> list[str]:
    """Return the argument names in a form: ``PQ{m}x{bits}`` has ``m`` and ``bits``."""
    return [name for _, name, _, _ in Formatter().parse(form) if name]


def form_shape(form: str) -> str:
    """Return what two forms must not share: the form with blank fields, in small letters."""
    return re.sub(r"\{.*?\}", "{}", form).lower()


def parameters(cls: type[Stage]) -> Mapping[str, inspect.Parameter]:
    """Return a stage's constructor arguments by name, in order."""
    if cls.__init__ is object.__init__:
        return {}
    return {name: p for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"}


def print_stage(stage: Stage) -> str:
    """Print a stage: the first form whose fields are all set, then the options that differ from their defaults."""
    config, known = stage.config, parameters(type(stage))
    form = next(f for f in stage.forms if all(config[name] is not None for name in fields(f)))
    spelled = {name: print_value(config[name]) for name in fields(form)}
    options = [
        name if config[name] is True else f"{name}={print_value(config[name])}"
        for name in config
        if name not in spelled and config[name] != known[name].default
    ]
    return form.format(**spelled) + (f"({','.join(options)})" if options else "")


def print_value(value: Any) -> str:
    """Print an argument so that `read_value` returns it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


# reading


def read_value(text: str) -> Any:
    """Read an argument: true, false, none, an integer, a float, or text."""
    if text in WORDS:
        return WORDS[text]
    if re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"-?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=e))(e[+-]?[0-9]+)?", text):
        return float(text)
    return text


def split_stages(text: str) -> list[tuple[int, str]]:
    """Cut a spec at the commas outside parentheses: (position, stage) pairs; raise `UnbalancedError`."""
    stages, opened, start = [], -1, 0
    for position, letter in enumerate(text + ","):
        if letter == "(" and opened < 0:
            opened = position
        elif letter == ")" and opened >= 0:
            opened = -1
        elif letter in "()":
            raise UnbalancedError(position)
        elif letter == "," and opened < 0:
            part = text[start:position]
            stages.append((start + len(part) - len(part.lstrip()), part.strip()))
            start = position + 1
    if opened >= 0:
        raise UnbalancedError(opened)
    return stages


class UnbalancedError(ValueError):
    """A parenthesis without its partner, at the position that is the only argument."""


def read_stage(text: str, classes: Sequence[type[Stage]]) -> Stage | None:
    """Build the stage that `text` spells, or return None when no class has that form."""
    match = re.fullmatch(r"([^()]+?)\s*(?:\(([^()]*)\))?", text)
    if not match:
        return None
    options = [part.strip() for part in match[2].split(",")] if match[2] else []
    for cls in classes:
        for form in cls.forms:
            if spelled := re.fullmatch(form_pattern(form), match[1]):
                try:
                    arguments = {name: read_value(value) for name, value in spelled.groupdict().items()}
                    return cls(**arguments, **read_options(cls, options, taken=arguments))
                except InvalidArgumentError:
                    raise
                except (TypeError, ValueError, OverflowError) as error:  # a value of a type that the class cannot take
                    raise InvalidArgumentError(str(error)) from None
    return None


def form_pattern(form: str) -> str:
    """Return the regular expression of a form: a named group for each field."""
    return "".join(
        re.escape(literal) + (f"(?P<{name}>{NUMBER})" if name else "")
        for literal, name, _, _ in Formatter().parse(form)
    )


def read_options(cls: type[Stage], options: list[str], taken: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the text in parentheses into constructor arguments."""
    known = [name for name in parameters(cls) if name not in taken]
    arguments: dict[str, Any] = {}
    for position, option in enumerate(options):
        name, equals, value = (part.strip() for part in option.partition("="))
        if equals:
            pair = name, read_value(value)
        elif option in known:
            pair = option, True
        elif position < len(known) and option:
            pair = known[position], read_value(option)
        else:
            raise InvalidArgumentError(f"it takes at most {len(known)} options ({', '.join(known) or 'none'})")
        if pair[0] not in known:
            raise InvalidArgumentError(f"it has no option '{pair[0]}'; it takes {', '.join(known) or 'none'}")
        if pair[0] in arguments:
            raise InvalidArgumentError(f"the option '{pair[0]}' is given twice")
        arguments[pair[0]] = pair[1]
    for name, parameter in parameters(cls).items():
        if parameter.default is parameter.empty and name not in arguments and name not in taken:
            raise InvalidArgumentError(f"it needs the option '{name}'")
    return arguments


# suggesting


def nearest(text: str, classes: Sequence[type[Stage]]) -> str:
    """Return the valid stage most like `text`, its fields filled with the numbers of `text` or usual ones."""
    head = text.partition("(")[0].strip()[:40]

    def likeness(candidate: str) -> float:
        return difflib.SequenceMatcher(None, head.lower(), candidate.lower()).ratio()

    spellings = [(cls, form) for cls in classes for form in cls.forms]
    numbers = [float(number) for number in re.findall(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", head)]
    best: tuple[float, str] = (-1.0, "F32")
    for cls, form in spellings:
        # The form's own digits are not the user's: FP8 has no number to give to PQ{m}x{bits}.
        given = numbers if fields(form) else []
        for candidate in itertools.islice(fillings(form, given), 200):
            try:
                stage = read_stage(candidate, [cls])
            except InvalidArgumentError:
                continue
            if stage is not None and likeness(candidate) > best[0]:
                best = likeness(candidate), str(stage)
            break
    return best[1]


def fillings(form: str, numbers: list[float]) -> Iterator[str]:
    """Fill a form's fields with `numbers`, then with usual numbers, the nearest first."""
    names = fields(form)
    wanted = [*numbers, *([8.0] * len(names))][: len(names)]
    choices = [{number, *map(float, USUAL_NUMBERS)} for number in wanted]

    def far(values: tuple[float, ...]) -> float:
        return sum(distance(value, number) for value, number in zip(values, wanted, strict=True))

    for values in sorted(itertools.product(*choices), key=far):
        yield form.format(**{name: f"{value:g}" for name, value in zip(names, values, strict=True)})


def distance(a: float, b: float) -> float:
    """Return how far two numbers are apart as a ratio, 0 when they are equal."""
    return abs(math.log((a + 0.01) / (b + 0.01)))


def repair(parts: Sequence[str], classes: Sequence[type[Stage]]) -> str:
    """Return a valid spec near the stages `parts`."""
    from ragq.compressors.base import Quantizer, Transform

    fixed: list[str] = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        wanted = Quantizer if last else Transform
        try:
            stage = read_stage(part, classes)
        except InvalidArgumentError:
            stage = None
        if isinstance(stage, Quantizer):
            return ",".join([*fixed, str(stage)])
        if stage is not None:
            fixed.append(str(stage))
        elif part or last:
            alike = [cls for cls in classes if issubclass(cls, wanted)]
            fixed += [nearest(part, alike)] if alike else []
        if stage is not None and last:
            fixed.append("F32")
    return ",".join(fixed)


def from_spec(text: str) -> Compressor:
    """Build the compressor that a spec names.

    Parameters
    ----------
    text : str
        For example ``PCA192,FP8`` or ``OPQ48,PQ48x8``; ``RBQ1+INT8`` is a coarse code and a finer one.

    Returns
    -------
    Compressor
        Not fitted. ``str`` of it is `text` in its canonical spelling.

    Raises
    ------
    InvalidArgumentError
        An unknown or impossible stage: names its position, the reason and the nearest valid spec.
    """
    from ragq.compressors.base import Chain, Quantizer, Transform
    from ragq.compressors.refine import Refined
    from ragq.compressors.registry import stage_classes

    if not isinstance(text, str) or not text.strip():
        raise InvalidArgumentError(f"A spec must be text such as 'PCA192,FP8'. Got {text!r}.")
    if len(text) > MAX_LENGTH:
        raise InvalidArgumentError(f"A spec must be at most {MAX_LENGTH} characters long. Got {len(text)}.")
    if plus := re.fullmatch(r"((?:[^+()]|\([^()]*\))+)\+((?:[^+()]|\([^()]*\))+)", text):
        return Refined(from_spec(plus[1]), from_spec(plus[2]))
    classes = stage_classes()

    def fail(position: int, reason: str, parts: Sequence[str]) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"Bad spec {text!r} at position {position + 1}: {reason}. Nearest valid spec: '{repair(parts, classes)}'."
        )

    try:
        parts = split_stages(text)
    except UnbalancedError as error:
        bare = [part.strip() for part in re.sub(r"\([^()]*\)?|\)", "", text).split(",")]
        raise fail(error.args[0], "a parenthesis has no partner", bare) from None
    names = [part for _, part in parts]
    stages: list[Stage] = []
    for index, (position, part) in enumerate(parts):
        last = index == len(parts) - 1
        try:
            stage = read_stage(part, classes)
        except InvalidArgumentError as error:
            raise fail(position, f"{part!r} is impossible: {str(error).rstrip('.')}", names) from None
        if stage is None:
            raise fail(position, f"{part!r} names no known codec" if part else "a stage is empty", names)
        if isinstance(stage, Transform) and last:
            raise fail(position, f"{part!r} is a transform; a quantizer must end the spec", names)
        if isinstance(stage, Quantizer) and not last:
            raise fail(position, f"{part!r} is a quantizer and must be the last stage", names)
        stages.append(stage)
    *transforms, quantizer = stages
    assert isinstance(quantizer, Quantizer)
    return Chain([t for t in transforms if isinstance(t, Transform)], quantizer) if transforms else quantizer
