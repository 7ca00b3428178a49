# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: frozen dataclasses, checked once, used everywhere.

A config file is Python with `get_config()`; it starts from `base()` or `recommended()` and changes fields. On the
command line `--config.model.width=128` overrides one. `resolve` turns the result into a `Config` or says which field
is wrong.
"""

import dataclasses
import functools
import importlib.util
import inspect
import math
import os
import re
import textwrap
import typing
from dataclasses import dataclass, field
from typing import Literal

import ml_collections

from bert4rec_jax.errors import UserError
from bert4rec_jax.files import read_json
from bert4rec_jax.phases import columns

FORMATS = ("table", "lines", "sequences", "synthetic")
WRITERS = ("tensorboard", "wandb", "mlflow")
MOVIELENS = ("ml-100k", "ml-1m", "ml-10m", "ml-20m", "ml-25m", "ml-32m", "ml-latest-small")


@dataclass(frozen=True)
class SyntheticConfig:
    """Size of the generated log (`data.source = "synthetic"`); see `data/sources/synthetic.py` for its structure."""

    users: int = 2000  # in the log
    num_items: int = 500  # not `items`: ConfigDict has a method of that name
    genres: int = 10  # that items belong to and users stay in for a while
    mean_length: int = 40  # events a user
    seed: int = 0  # of the log, whatever the run's seed


@dataclass(frozen=True)
class DataConfig:
    """Where interactions come from, which are kept, and how users are split."""

    # A MovieLens name (ml-100k, ml-1m, ml-10m, ml-20m, ml-25m, ml-32m, ml-latest-small: downloaded, or read from
    # `path`, a folder with the original files) or a format: `table` (delimited text or Parquet at `path`, or a folder
    # with interactions.parquet and items.parquet), `lines` (one `user item` pair a line), `sequences` (one user a
    # line: user item item ...), `synthetic`.
    source: str = "ml-100k"
    path: str = ""  # file or folder with the data; MovieLens: empty downloads them
    items_path: str = ""  # optional item table for `table`, `lines` and `sequences`
    # Downloads and prepared arrays live here; empty: $BERT4REC_DATA, else ~/.cache/bert4rec_jax.
    cache_dir: str = ""
    # `memory` reads the log into memory; `duckdb` and `spark` prepare logs of any size with the same result; `auto` is
    # `memory` where that takes less than half of the free memory, else `duckdb`.
    engine: Literal["auto", "memory", "duckdb", "spark"] = "auto"
    engine_master: str = "local[2]"  # of `spark`: local[4], yarn, k8s://..., spark://...
    memory: str = ""  # of the engines, as in "8GiB"; empty: half of what is free
    # Of the engines: what does not fit into memory, and stages that a second start goes on from; empty: beside the
    # prepared folder.
    spill_dir: str = ""
    # `table` only. An empty separator is found from the extension and the header. Columns that are all numbers are
    # positions, counted from 1, in a file without a header.
    separator: str = ""
    user_column: str = "user"  # of the log, by name or, without a header, by number
    item_column: str = "item"  # of the log, as user_column
    time_column: str = "timestamp"  # empty: keep file order
    rating_column: str = ""  # empty: there are no ratings
    where: str = ""  # an SQL condition on the rows of a `table`, as in "played_ratio >= 50"; needs DuckDB or Spark
    key_column: str = ""  # of the item table: its ids; empty: as item_column
    title_column: str = "title"  # of the item table
    year_column: str = "year"  # of the item table
    genres_column: str = "genres"  # of the item table; several genres are joined by |
    # Comma-separated columns of the item table: title, year, genres, or others by their own names. Words and values
    # that several items share are features, and the embedding of an item is its own plus the mean of those of its
    # features.
    features: str = ""
    min_rating: float = 0.0  # interactions rated below are dropped; 0 keeps all
    user_core: int = 0  # users with fewer interactions are dropped, repeatedly together with item_core
    item_core: int = 0  # items with fewer interactions are dropped, repeatedly together with user_core
    repeats: Literal["keep", "drop"] = "keep"  # drop: only the first time that a user met an item counts
    first_users: int = 0  # keep the first N users (negative: the last N) after filtering; 0 keeps all
    # leave_one_out: each user's last event is the test target, the one before it the validation target. temporal: the
    # newest periods of the whole log are.
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    test_share: float = 0.1  # `temporal`: the newest share of all interactions that tests
    valid_share: float = 0.1  # `temporal`: the share before the test period that validates
    # `temporal`: which event of a user in a period is its target. first: no other event of the period is known. last:
    # the user's earlier events of the period belong to the history.
    period_target: Literal["first", "last"] = "first"
    # `temporal` by the clock instead, where test_seconds is not 0: the test period is that long and ends with the last
    # event, a gap before it is neither trained on nor predicted, and the validation period lies before the gap. In
    # units of the time column.
    test_seconds: int = 0
    valid_seconds: int = 0  # length of the validation period, where test_seconds is not 0
    gap_seconds: int = 0  # between the validation and the test period, where test_seconds is not 0
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """The columns that `features` names."""
        return tuple(dict.fromkeys(name.strip() for name in self.features.split(",") if name.strip()))


@dataclass(frozen=True)
class ModelConfig:
    """The Transformer. The defaults are Sun et al. (2019) at width 64."""

    # How a history is continued. mask: a [MASK] appended to it, under bidirectional attention (BERT4Rec). last_item:
    # from its last item under causal attention (SASRec). both: the mean of the two hidden states. The last two take
    # rows that learned so (`masking.next_item`).
    ranks_from: Literal["mask", "last_item", "both"] = "mask"
    width: int = 64  # of embeddings and hidden states
    layers: int = 2  # Transformer blocks
    heads: int = 2  # of attention; they share the width
    ffn_width: int = 256  # inside the feed-forward network of a block
    max_length: int = 200  # positions of a history, the one to predict included
    # Where sub-layers are normalised: post after the residual sum, as in BERT4Rec; pre before them (Xiong et al. 2020).
    norm: Literal["post", "pre"] = "post"
    # left, right: learned embeddings, the oldest or the newest item being position 0. rotary: distances between items,
    # by turning queries and keys (Su et al. 2021).
    positions: Literal["left", "right", "rotary"] = "left"
    # Item embeddings times sqrt(width) where they enter (Vaswani et al. 2017, section 3.4), and not where they are the
    # output layer. Without effect where norm is post and positions rotary: the embeddings are normalised first of all.
    scale_embeddings: bool = False
    head: Literal["transform", "tied"] = "transform"  # transform: dense + GELU + LayerNorm before the item table
    dropout: float = 0.1  # of embeddings and of each sub-layer's output
    attention_dropout: float = 0.1  # of attention weights
    # dense: written out in arrays. pallas_tpu, pallas_gpu: fused kernels, interpreted (slowly) on any other machine.
    # auto: the kernel of the machine, dense on CPU. All give the same model.
    attention: Literal["auto", "dense", "pallas_tpu", "pallas_gpu"] = "auto"
    init_scale: float = 0.02  # standard deviation of the truncated normal of every weight
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and products; parameters stay float32
    remat: bool = False  # recompute activations in the backward pass: less memory, more time

    @property
    def appends_mask(self) -> bool:
        """Whether a history that is to be continued ends in [MASK], which takes one of its positions."""
        return self.ranks_from != "last_item"


@dataclass(frozen=True)
class MaskingConfig:
    """What rows of a batch learn: masked items (the Cloze task of BERT4Rec), or the next item (that of SASRec)."""

    probability: float = 0.2  # share of a history that is masked; at least one item is
    max_masks: int = 0  # per history; 0: no limit
    # Share of a batch's rows that learn, with the same weights, the next item of every item under causal attention.
    # 0: BERT4Rec. 1, with `model.ranks_from = "last_item"`: SASRec.
    next_item: float = 0.0
    last_item_only: float = 0.0  # share of histories of which only the last item is masked, as at test time
    random_token: float = 0.0  # share of masked slots that show a random item instead of [MASK] (BERT: 0.1)
    keep_token: float = 0.0  # share of masked slots that show the item itself (BERT: 0.1)


@dataclass(frozen=True)
class LossConfig:
    """How a slot's target is told from the rest of the catalogue."""

    # softmax: exact over the whole catalogue. sampled_softmax: uniform negatives with log-Q correction.
    # gbce: Petrov and Macdonald (2023), sampled binary cross-entropy with calibration `gbce_t`.
    name: Literal["softmax", "sampled_softmax", "gbce"] = "softmax"
    negatives: int = 256  # of the sampled losses, shared by all slots of a batch
    gbce_t: float = 0.75  # calibration of gbce: 0 is plain binary cross-entropy, 1 undoes the sampling fully
    # Items per chunk of logits; 0: as many as fit 64 MiB, but never more than 32 chunks.
    chunk_items: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam or AdamW with a warmed-up schedule over `train.steps`."""

    name: Literal["adam", "adamw"] = "adam"  # AdamW decays weights
    learning_rate: float = 1e-3  # at the end of the warm-up
    warmup_steps: int = 0  # the learning rate grows from 0 in so many steps
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # of the learning rate from there to the last step
    final_fraction: float = 0.0  # of the learning rate, where linear and cosine end
    beta1: float = 0.9  # of Adam: memory of the gradient
    beta2: float = 0.999  # of Adam: memory of its square
    weight_decay: float = 0.0  # adamw only; matrices alone are decayed
    clip_norm: float = 0.0  # of the global gradient; 0: off


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, batches and cadence."""

    steps: int = 1000  # updates in the whole run
    # A row is `model.max_length` positions and holds as many histories as fit.
    batch_rows: int = 32
    windows: Literal["newest", "random"] = "newest"  # which part of a longer history an epoch sees
    accumulate: int = 1  # split a batch into this many parts and add up their gradients before the update
    eval_every: int = 250  # steps between validations; the best checkpoint is chosen there
    patience: int = 0  # stop after this many validations without a better one; 0: never
    checkpoint_every: int = 250  # steps between saves
    log_every: int = 50  # steps between lines of metrics.jsonl
    on_nan: Literal["stop", "skip"] = "stop"  # skip: leave out updates that are not finite and count them
    writers: str = ""  # comma-separated, beside metrics.jsonl: tensorboard, wandb, mlflow


@dataclass(frozen=True)
class EvalConfig:
    """How validation and test rank."""

    # full: the whole catalogue. pop100, uni100: 100 negatives by popularity or uniform, never interacted with.
    protocol: Literal["full", "pop100", "uni100"] = "full"
    metric: str = "ndcg@10"  # of validation; chooses the best checkpoint
    # Where the target stands among candidates of its score. pessimistic: behind them. expected: in the middle.
    ties: Literal["pessimistic", "expected"] = "pessimistic"
    filter_seen: bool = True  # remove the items of a user's own history from the candidates; `recommend` does the same
    # A target that the user has met before, where seen items are removed. last: it is removed too and ranks behind all
    # candidates, as it would never be recommended. compete: it alone of the seen items stays, as in most papers' code.
    repeated_targets: Literal["last", "compete"] = "last"
    negatives_seed: int = 0  # of pop100 and uni100: the same negatives whatever the run's seed
    batch_rows: int = 64  # rows of `model.max_length` positions that are ranked at once
    valid_users: int = 0  # all validation metrics are over the first N users of a fixed shuffle; 0: over all users


@dataclass(frozen=True)
class ParallelConfig:
    """How the step is laid over devices."""

    # jit: one program over a mesh of devices. pmap: a program for each, data-parallel only. Both take the same steps.
    mode: Literal["jit", "pmap"] = "jit"
    data: int = 0  # devices that share the rows of a batch; 0: all that are left
    catalogue: int = 1  # devices that share the item table and its logits


@dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    seed: int = 0  # of parameters, batches, masks, dropout and sampled negatives of the loss
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    @property
    def model_name(self) -> str:
        """What tables call this model, by what it learns."""
        features = ", item features" if self.data.feature_columns else ""
        if self.masking.next_item == 1:
            return "SASRec" + features
        if self.masking.next_item == 0:
            return "BERT4Rec (Cloze)" + features
        return "BERT4Rec + next item" + {
            "both": "", "mask": ", ranks from [MASK]", "last_item": ", ranks from the last item",
        }[self.model.ranks_from] + features

    def to_dict(self) -> dict:
        """Returns the config as nested plain dicts, as written to config.json."""
        return dataclasses.asdict(self)


def base() -> ml_collections.ConfigDict:
    """Returns the defaults as a locked ConfigDict, to be changed by a config file."""
    return ml_collections.ConfigDict(Config().to_dict()).lock()


def recommended() -> ml_collections.ConfigDict:
    """Returns `base()` with the choices that trained best on several data sets (docs/quality.md).

    What depends on the size of the data is left to the config file: width, length, dropout, masks, steps and rows.
    """
    config = base()
    config.model.update(ranks_from="both", positions="rotary", head="tied", attention_dropout=0.0)
    config.masking.update(next_item=0.75)
    config.train.windows = "random"
    config.optimizer.update(learning_rate=2e-3, warmup_steps=200, schedule="cosine", final_fraction=0.01, beta2=0.98)
    return config


def shipped() -> dict[str, str]:
    """Returns {name: path} of the config files that come with the program: beside the package, or inside a wheel's."""
    package = os.path.dirname(os.path.abspath(__file__))
    folders = (os.path.join(package, "configs"), os.path.join(os.path.dirname(package), "configs"))
    folder = next((folder for folder in folders if os.path.isdir(folder)), None)
    files = sorted(os.listdir(folder)) if folder else []
    return {name.removesuffix(".py"): os.path.join(folder, name) for name in files if name.endswith(".py")}


def load(path: str) -> ml_collections.ConfigDict:
    """Returns the values of a config file: Python with `get_config()`, or the config.json of a run or a record.

    Args:
      path: of the file, or the bare name of one of `shipped()`, as in `quickstart`; a name after a colon is given to
        `get_config`, as in `configs/amazon.py:2023` or `amazon:2023`.

    Raises:
      UserError: the file cannot be read or is not one; names what is wrong.
    """
    if not path:
        raise UserError("--config is missing: name a config file, such as configs/quickstart.py.")
    if path.endswith(".json"):
        return _from_json(path)
    file, _, name = path.partition(":")
    if re.fullmatch(r"\w+", file):
        file = shipped().get(file, file + ".py")
    if os.path.isfile(file) and not file.endswith(".py"):
        raise UserError(f"the config file {path} is neither Python (.py) nor a config.json.")
    try:
        if not os.path.isfile(file):
            raise FileNotFoundError
        spec = importlib.util.spec_from_file_location("_" + os.path.basename(file).removesuffix(".py"), file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if name and not inspect.signature(module.get_config).parameters:
            raise UserError(f"the config file {file} takes no name after a colon, such as {name!r}.")
        values = module.get_config(*[name] if name else [])
        return ml_collections.ConfigDict(values).lock()
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no config file {path}; those that come with the program go by their names: "
                        f"{', '.join(shipped())}.") from None
    except Exception as error:  # the file is the user's code
        raise UserError(f"the config file {path} cannot be read ({type(error).__name__}): {error}.") from None


def _from_json(path: str) -> ml_collections.ConfigDict:
    try:
        values = read_json(path)
    except OSError as error:
        raise UserError(f"the config file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"the config file {path} is not valid JSON: {error}.") from None
    # Through `Config`, so that whole numbers become floats where floats belong, and unknown fields are named.
    return ml_collections.ConfigDict(_build(Config, values, "").to_dict()).lock()


class Field(typing.NamedTuple):
    """One field of the configuration, for people: `group.name`, its type or choices, its default, what it does."""

    name: str
    kind: str
    default: object
    text: str


def describe() -> list[Field]:
    """Returns all fields in the order of this file; what they do is read from the comments beside them."""
    fields = []

    def walk(cls, prefix: str) -> None:
        lines = inspect.getsource(cls).splitlines()
        for f in dataclasses.fields(cls):
            if dataclasses.is_dataclass(f.type):
                walk(f.type, f"{prefix}{f.name}.")
                continue
            place = next(n for n, line in enumerate(lines) if re.match(rf"    {f.name}: ", line))
            above = place
            while lines[above - 1].strip().startswith("#"):
                above -= 1
            text = [line.strip().lstrip("# ") for line in lines[above:place]]
            text += lines[place].split("  # ")[1:]
            kinds = typing.get_args(f.type) if typing.get_origin(f.type) is Literal else (f.type.__name__,)
            fields.append(Field(prefix + f.name, "|".join(kinds), f.default, " ".join(text)))

    walk(Config, "")
    return fields


def help_text() -> str:
    """Returns all fields with their defaults, as text for a terminal."""
    lines = ["Fields of the configuration, with their defaults (--config.GROUP.FIELD=VALUE):"]
    for name, kind, default, text in describe():
        lines.append(f"  {name} = {default!r} ({kind})")
        lines += textwrap.wrap(text, min(columns(), 100), initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def choose(choices: dict, name: str):
    """Returns choices[name], for a config file that takes a name after a colon, as in `amazon.py:2023`.

    Raises:
      UserError: there is no such name; lists those that there are.
    """
    if name not in choices:
        raise UserError(f"the config file has no {name!r}; name one of {', '.join(choices)} after the colon.")
    return choices[name]


def resolve(values: ml_collections.ConfigDict | dict) -> Config:
    """Turns nested values into a checked `Config`.

    Raises:
      UserError: an unknown field, a value of the wrong type or out of range; names the field.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    config = _build(Config, values, "")
    _check(config)
    return config


def _build(cls, values, prefix: str):
    if not isinstance(values, dict):
        raise UserError(f"{f'config.{prefix}'.rstrip('.')} must be a group of fields, not {_shown(values)}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"unknown config field config.{prefix}{unknown[0][:60]}; the fields there are: "
                        f"{', '.join(fields)}.")
    return cls(**{name: _value(fields[name].type, value, prefix + name) for name, value in values.items()})


def _value(kind, value, name: str):
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, name + ".")
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise UserError(f"config.{name} must be one of {', '.join(typing.get_args(kind))}, not {_shown(value)}.")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e308 else math.inf  # an int may be larger than any float
    if type(value) is not kind:
        raise UserError(f"config.{name} must be of type {kind.__name__}, not {_shown(value)}.")
    if kind is float and not math.isfinite(value):
        raise UserError(f"config.{name} must be a finite number, not {_shown(value)}.")
    if kind is str and not _is_text(value):
        raise UserError(f"config.{name} = {_shown(value)} holds what no text and no path can hold: half a character, "
                        "or a zero byte.")
    return value


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _is_text(value: str) -> bool:
    try:
        os.fsencode(value)  # not as UTF-8: a path may hold other bytes, which Python keeps as halves of its own
    except UnicodeEncodeError:
        return False
    return "\0" not in value


# Rules of single fields: (what it must be, whether a value is, the fields).
_RANGES = (
    ("at least 1", lambda x: x >= 1, (
        "model.width", "model.layers", "model.heads", "model.ffn_width", "train.steps", "train.batch_rows",
        "train.accumulate", "train.eval_every", "train.checkpoint_every", "train.log_every", "eval.batch_rows",
        "loss.negatives", "parallel.catalogue", "data.synthetic.users", "data.synthetic.genres")),
    ("at least 0", lambda x: x >= 0, (
        "masking.max_masks", "loss.chunk_items", "optimizer.warmup_steps", "optimizer.weight_decay",
        "optimizer.clip_norm", "train.patience", "eval.valid_users", "parallel.data", "data.user_core",
        "data.item_core", "data.min_rating", "data.test_seconds", "data.valid_seconds", "data.gap_seconds")),
    ("at least 0 and below 2**32", lambda x: 0 <= x < 2**32, ("seed", "eval.negatives_seed", "data.synthetic.seed")),
    ("at least 0 and below 1", lambda x: 0 <= x < 1, (
        "model.dropout", "model.attention_dropout", "optimizer.beta1", "optimizer.beta2")),
    ("between 0 and 1", lambda x: 0 <= x <= 1, (
        "masking.next_item", "masking.last_item_only", "masking.random_token", "masking.keep_token",
        "optimizer.final_fraction", "loss.gbce_t")),
    ("above 0 and at most 1", lambda x: 0 < x <= 1, ("masking.probability",)),
    ("above 0 and below 1", lambda x: 0 < x < 1, ("data.test_share",)),
    ("above 0", lambda x: x > 0, ("model.init_scale", "optimizer.learning_rate")),
    ("at least 2", lambda x: x >= 2, ("model.max_length",)),
    ("at least 5", lambda x: x >= 5, ("data.synthetic.mean_length",)),
    ("within 64 bits", lambda x: abs(x) < 2**63, ("data.first_users",)),
    ("one of " + ", ".join(MOVIELENS + FORMATS), lambda x: x in MOVIELENS + FORMATS, ("data.source",)),
    ("a size such as '8GiB', or '' for half of what is free",
     lambda x: re.fullmatch(r"(\d+(\.\d+)? ?[KMGT]i?B)?", x) is not None, ("data.memory",)),
    ("empty or some of " + ", ".join(WRITERS),
     lambda x: {name.strip() for name in x.split(",") if name.strip()} <= set(WRITERS), ("train.writers",)),
    ("mrr, or ndcg, hr, recall, mrr or map at 1, 5, 10, 20, 50 or 100, as in ndcg@10",
     lambda x: re.fullmatch(r"(ndcg|hr|recall|mrr|map)@(1|5|10|20|50|100)|mrr", x) is not None, ("eval.metric",)),
)


def _check(c: Config) -> None:
    def value(name: str):
        return functools.reduce(getattr, name.split("."), c)

    def require(ok: bool, name: str, rule: str) -> None:
        if not ok:
            raise UserError(f"config.{name} = {_shown(value(name))} is out of range: it must be {rule}.")

    for rule, holds, names in _RANGES:
        for name in names:
            require(holds(value(name)), name, rule)

    # Rules of fields together.
    data, model, masking = c.data, c.model, c.masking
    require(masking.next_item < 1 or model.ranks_from == "last_item", "model.ranks_from",
            "'last_item' when config.masking.next_item is 1, because then no row learns what [MASK] stands for")
    require(masking.next_item > 0 or model.ranks_from == "mask", "model.ranks_from",
            "'mask' when config.masking.next_item is 0, because then no row learns to continue from its last item")
    require(masking.random_token + masking.keep_token <= 1, "masking.keep_token",
            "at most 1 together with config.masking.random_token")
    require(model.width % model.heads == 0, "model.heads", f"a divisor of config.model.width = {model.width}")
    require(model.positions != "rotary" or model.width % (2 * model.heads) == 0, "model.heads",
            "such that config.model.width / config.model.heads is even when config.model.positions is 'rotary'")
    require(data.source not in ("table", "lines", "sequences") or data.path != "", "data.path",
            f"given when config.data.source is {data.source!r}")
    for name in ("valid_seconds", "gap_seconds"):
        require(getattr(data, name) == 0 or data.test_seconds > 0, f"data.{name}",
                "0 unless config.data.test_seconds is set")
    require(data.test_seconds == 0 or data.split == "temporal", "data.test_seconds",
            "0 unless config.data.split is 'temporal'")
    require(data.period_target == "first" or data.split == "temporal", "data.period_target",
            "'first' unless config.data.split is 'temporal'")
    require(0 < data.valid_share < 1 - data.test_share, "data.valid_share",
            "above 0 and, with config.data.test_share, below 1")
    require(data.synthetic.num_items >= 2 * data.synthetic.genres, "data.synthetic.num_items",
            "at least twice config.data.synthetic.genres")
    require(c.optimizer.weight_decay == 0 or c.optimizer.name == "adamw", "optimizer.weight_decay",
            "0 unless config.optimizer.name is 'adamw'")
    require(c.optimizer.warmup_steps < c.train.steps, "optimizer.warmup_steps", "less than config.train.steps")
    require(c.train.batch_rows % c.train.accumulate == 0, "train.accumulate",
            f"a divisor of config.train.batch_rows = {c.train.batch_rows}")
    require(c.parallel.mode == "jit" or c.parallel.catalogue == 1, "parallel.catalogue",
            "1 when config.parallel.mode is 'pmap'; use mode 'jit' to split the item table")
