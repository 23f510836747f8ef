"""The settings of a trainer: `dlrn_train_config` of C, filled by names. A field goes by its own name, by the name that
config.json has for it, or by that of dictionary_learning."""
from __future__ import annotations

import math
from typing import Any, Dict, List, Optional

from ._core import ArgumentError, ffi, lib
from ._records import enum_name, fields_of, words_of
from .tables import recipes

#: Names of dictionary_learning, and the fields that they are.
ALIASES = {
    "activation_dim": "d_in", "dict_size": "features", "dictionary_size": "features", "dict_layers": "layers",
    "l1_penalty": "sparsity_penalty", "initial_sparsity_penalty": "sparsity_penalty",
    "sparsity_function": "sparsity", "n_sparsity_updates": "anneal_updates", "top_k_aux": "auxk",
    "dead_feature_threshold": "dead_rows", "group_sizes": "groups", "group_fractions": "groups",
    "batch_size": "batch_rows", "out_batch_size": "batch_rows",
}
_FIELDS = dict(fields_of("dlrn_train_config"))
_BUFFER = {name: kind for name, kind in fields_of("dlrn_buffer_config") if name != "seed"}
_BUFFER["buffer_seed"] = dict(fields_of("dlrn_buffer_config"))["seed"]
_ENUMS = {enum_name(kind): words_of(kind) for kind in list(_FIELDS.values()) + list(_BUFFER.values())
          if kind.kind == "enum" and enum_name(kind) != "dlrn_switch"}
#: Words of dictionary_learning for values of enumerations.
_WORDS = {"Lp": "lp", "Lp^p": "power"}
#: What None means where it is not "as the recipe has it".
_NEVER = ("decay_start", "resample_steps", "ghost_threshold", "steps", "save_steps", "log_steps", "anneal_end", "lr")
_ZERO = ("sparsity_warmup_steps", "k_anneal_steps", "clip")
#: Fields that are not settings of a step.
_OTHER = ("recipe", "buffer", "n_groups")


RECIPES = {recipe["name"]: recipe for recipe in recipes()}
_SPECIAL = {name for recipe in RECIPES.values() for name in recipe["settings"]}


def is_setting(name: str) -> bool:
    """Whether some recipe, or the buffer, has a setting of this name."""
    return name in _BUFFER or (name in _FIELDS and name not in _OTHER)


def settings_of(recipe: str) -> List[str]:
    """The names of all settings that a recipe uses."""
    own = RECIPES[recipe]["settings"]
    named = [n for n in _FIELDS if n not in _OTHER and (n in own or n not in _SPECIAL)]
    return named + list(_BUFFER)


def _number(name: str, kind, value: Any) -> Any:
    """A value for a field of C; values of another kind are refused here, with the setting's name."""
    if kind.kind == "enum" and enum_name(kind) == "dlrn_switch":
        if value in ("on", "off"):
            return int(value == "on")
        if not isinstance(value, (bool, int)):
            raise TypeError(f"{name}: expected True or False, found {value!r}")
        return int(bool(value))
    if kind.kind == "enum":
        words = _ENUMS[enum_name(kind)]
        word = _WORDS.get(value, value)
        if word not in words:
            raise ArgumentError(f"{name}: expected one of {', '.join(words)}; found {value!r}")
        return words[word]
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, found {value!r}")
    if kind.cname == "double":
        return float(value)
    if float(value) != math.floor(float(value)):
        raise ArgumentError(f"{name}: expected a whole number, found {value!r}")
    return int(value)


def _groups(cfg, values: Any) -> None:
    """Sizes of nested groups, or their fractions of the features; the last group takes the rest."""
    values = list(values)
    if values and all(isinstance(v, float) and v <= 1 for v in values):
        if not math.isclose(sum(values), 1.0):
            raise ArgumentError(f"groups: the fractions add up to {sum(values):g}, expected 1")
        sizes = [int(v * cfg.features) for v in values[:-1]]
        values = sizes + [cfg.features - sum(sizes)]
    if len(values) > len(cfg.groups):
        raise ArgumentError(f"groups: at most {len(cfg.groups)}, found {len(values)}")
    cfg.n_groups = len(values)
    for i, value in enumerate(values):
        cfg.groups[i] = int(value)


def _set(cfg, name: str, kind, value: Any) -> None:
    if name == "groups":
        _groups(cfg, value)
    elif kind.kind == "array":
        if len(value) > kind.length:
            raise ArgumentError(f"{name}: at most {kind.length} numbers, found {len(value)}")
        for i, v in enumerate(value):
            getattr(cfg, name)[i] = v
    elif name in _BUFFER:
        setattr(cfg.buffer, name.replace("buffer_seed", "seed"), _number(name, kind, value))
    else:
        setattr(cfg, name, _number(name, kind, value))


def resolve(recipe: str, settings: Dict[str, Any]) -> Dict[str, Any]:
    """The settings by the names of their fields. A name that the recipe does not use is a TypeError that lists those
    that it does; None for it is "off", and passes."""
    if recipe not in RECIPES:
        raise ArgumentError(f"unknown recipe '{recipe}'; there are {', '.join(RECIPES)}")
    known = settings_of(recipe)
    found: Dict[str, Any] = {}
    for given, value in settings.items():
        name = ALIASES.get(given, given)
        if given == "entropy":
            name, value = "sparsity", "entropy" if value else None
        if name in found and found[name] != value:
            raise TypeError(f"{given}: is the same setting as {name}, which has another value")
        if name not in known:
            if value is None and (name in _FIELDS or name in _BUFFER):
                continue
            raise TypeError(f"recipe '{recipe}' has no setting '{given}'; it uses {', '.join(known)}")
        found[name] = value
    return found


def make_config(recipe: str, settings: Dict[str, Any], d_in: Optional[int], d_out: int = 0):
    """A `dlrn_train_config *` of these settings, as resolve() returns them. d_in: of the data, if they are there. The
    second value keeps what it points to."""
    keep = ffi.new("char[]", recipe.encode())
    cfg = ffi.new("dlrn_train_config *", lib.dlrn_train_defaults(keep))
    cfg.recipe = keep
    width = settings.get("d_in") or d_in
    if width is None:
        raise TypeError("activation_dim is needed where there are no data that tell it")
    cfg.d_in, cfg.d_out = int(width), d_out
    cfg.features = int(settings.get("features") or 16 * cfg.d_in)
    change_config(cfg, {name: v for name, v in settings.items() if name not in ("d_in", "features")})
    if "buffer_seed" not in settings:
        cfg.buffer.seed = cfg.seed
    return cfg, keep


def change_config(cfg, settings: Dict[str, Any]) -> None:
    """Writes settings, as resolve() returns them, into a `dlrn_train_config *`."""
    # "continuous": the exponent changes at every step
    if settings.get("anneal_updates") == "continuous":
        end = settings.get("anneal_end") or settings.get("steps") or 0
        settings = {**settings, "anneal_updates": max(end - settings.get("anneal_start", cfg.anneal_start) + 1, 1)}
    for name, value in settings.items():
        if value is None and name in _NEVER:
            value = -1
        elif value is None and name in _ZERO:
            value = 0
        if value is not None:
            _set(cfg, name, _BUFFER.get(name) or _FIELDS[name], value)


def read_config(cfg) -> Dict[str, Any]:
    """All settings of a `dlrn_train_config *`, by the names of their fields."""
    found: Dict[str, Any] = {"recipe": ffi.string(cfg.recipe).decode() if cfg.recipe != ffi.NULL else "reference"}
    n = int(cfg.n_groups)
    for name, kind in _FIELDS.items():
        if name in _OTHER:
            continue
        value = getattr(cfg, name)
        if kind.kind == "enum":
            value = _word(kind, value)
        found[name] = list(value)[0:n] if kind.kind == "array" else value
    return {**found, **read_buffer(cfg)}


def read_buffer(cfg) -> Dict[str, Any]:
    """The settings of the buffer in a `dlrn_train_config *`."""
    found: Dict[str, Any] = {}
    for name, kind in _BUFFER.items():
        value = getattr(cfg.buffer, name.replace("buffer_seed", "seed"))
        found[name] = _word(kind, value) if kind.kind == "enum" else value
    return found


def _word(kind, value: Any) -> Any:
    """True or False of a switch, the word of another enumeration. value: a number, or cffi's name of the constant."""
    number = int(value) if not isinstance(value, str) else kind.relements[value]
    if enum_name(kind) == "dlrn_switch":
        return bool(number)
    return next(word for word, n in _ENUMS[enum_name(kind)].items() if n == number)
