"""The spec grammar: the string that names a compressor, and back.

::

    spec    = stage { "," stage }          transforms first, one quantizer last
    stage   = form [ "(" option { "," option } ")" ]
    form    = a name with numbers, as the class spells it: PCA192, PQ48x8, SAQ1.5, PCA50%
    option  = value | name "=" value       constructor arguments; a bare name means true

A stage class lists its `forms`, such as ``("LVQ{bits}x{residual_bits}", "LVQ{bits}")``; the fields in braces are
constructor arguments. What a form does not spell is printed as an option when it differs from its default.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any

from ragq.errors import InvalidArgumentError

if TYPE_CHECKING:
    from ragq.compressors.base import Compressor, Stage

__all__ = ["from_spec", "parameters", "print_stage", "split_stages"]

NUMBER = r"\d+(?:\.\d+)?%?"


def fields(form: str) -> list[str]:
    """Return the argument names in a form: ``PQ{m}x{bits}`` has ``m`` and ``bits``."""
    return [name for _, name, _, _ in Formatter().parse(form) if name]


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
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"-?(\d+\.\d*|\.\d+|\d+(\.\d*)?e-?\d+)", text):
        return float(text)
    return text


def split_stages(text: str) -> list[tuple[int, str]]:
    """Cut a spec at the commas outside parentheses: (position, stage) pairs."""
    stages, depth, start = [], 0, 0
    for position, letter in enumerate(text + ","):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            part = text[start:position]
            stages.append((start + len(part) - len(part.lstrip()), part.strip()))
            start = position + 1
    if depth != 0:
        raise InvalidArgumentError(f"The spec '{text}' has unbalanced parentheses.")
    return stages


def read_stage(text: str, classes: list[type[Stage]]) -> Stage | None:
    """Build the stage that `text` spells, or return None when no class has that form."""
    match = re.fullmatch(r"([^()]+?)(?:\((.*)\))?", text)
    if not match:
        return None
    head, options = match[1], [part.strip() for part in match[2].split(",")] if match[2] else []
    for cls in classes:
        for form in cls.forms:
            names = fields(form)
            pattern = re.escape(form).replace(r"\{", "{").replace(r"\}", "}")
            for name in names:
                pattern = pattern.replace(f"{{{re.escape(name)}}}", f"(?P<{name}>{NUMBER})")
            if spelled := re.fullmatch(pattern, head):
                arguments = {name: read_value(value) for name, value in spelled.groupdict().items()}
                return cls(**arguments, **read_options(cls, options, taken=arguments))
    return None


def read_options(cls: type[Stage], options: list[str], taken: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the text in parentheses into constructor arguments."""
    known = [name for name in parameters(cls) if name not in taken]
    arguments: dict[str, Any] = {}
    for position, option in enumerate(options):
        name, equals, value = option.partition("=")
        if equals:
            arguments[name.strip()] = read_value(value.strip())
        elif option in known:
            arguments[option] = True
        elif position < len(known):
            arguments[known[position]] = read_value(option)
        else:
            raise InvalidArgumentError(f"takes at most {len(known)} options ({', '.join(known)})")
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise InvalidArgumentError(f"has no option '{unknown[0]}'; it takes {', '.join(known) or 'none'}")
    return arguments


def nearest(text: str, classes: list[type[Stage]]) -> str:
    """Return the form most like `text`, its fields filled with the numbers of `text` or common ones."""
    examples = [form for cls in classes for form in cls.forms]
    letters = re.sub(r"[^A-Za-z]", "", text.partition("(")[0])

    def likeness(form: str) -> float:
        name = re.sub(r"\{.*?\}", "", form)
        return difflib.SequenceMatcher(None, letters.lower(), name.lower()).ratio()

    form = max(examples, key=likeness)
    numbers = iter(re.findall(r"\d+", text))
    usual = {"bits": "8", "residual_bits": "8"}
    return form.format(**{name: next(numbers, usual.get(name, "48")) for name in fields(form)})


def from_spec(text: str) -> Compressor:
    """Build the compressor that a spec names.

    Parameters
    ----------
    text : str
        For example ``PCA192,FP8`` or ``OPQ48,PQ48x8``.

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
    from ragq.compressors.registry import stage_classes

    if not isinstance(text, str) or not text.strip():
        raise InvalidArgumentError(f"A spec must be text such as 'PCA192,FP8'. Got {text!r}.")
    classes = stage_classes()
    parts = split_stages(text)
    stages: list[Stage] = []

    def fail(index: int, reason: str, instead: str) -> InvalidArgumentError:
        position, stage = parts[index]
        whole = ",".join([s for _, s in parts[:index]] + [instead] + [s for _, s in parts[index + 1 :]])
        return InvalidArgumentError(
            f"Bad spec '{text}' at position {position + 1}: '{stage}' {reason}. Nearest valid spec: '{whole}'."
        )

    for index, (_, part) in enumerate(parts):
        last = index == len(parts) - 1
        wanted: type[Stage] = Quantizer if last else Transform
        try:
            stage = read_stage(part, classes)
        except InvalidArgumentError as error:
            raise fail(
                index, f"is impossible: {str(error).rstrip('.')}", nearest(part.partition("(")[0], classes)
            ) from None
        if stage is None:
            alike = nearest(part, [cls for cls in classes if issubclass(cls, wanted)])
            raise fail(index, "names no known codec", alike)
        if isinstance(stage, Transform) and last:
            raise fail(index, "is a transform; a quantizer must end the spec", f"{stage},F32")
        if isinstance(stage, Quantizer) and not last:
            raise InvalidArgumentError(
                f"Bad spec '{text}' at position {parts[index][0] + 1}: '{part}' is a quantizer and must be the last stage. "
                f"Nearest valid spec: '{','.join([s.spec for s in stages] + [stage.spec])}'."
            )
        stages.append(stage)
    *transforms, quantizer = stages
    assert isinstance(quantizer, Quantizer)
    return Chain(transforms, quantizer) if transforms else quantizer  # type: ignore[arg-type]
