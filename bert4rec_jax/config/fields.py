# SPDX-License-Identifier: Apache-2.0
"""The fields of a configuration, their defaults and what they do: frozen dataclasses.

The comment above or beside a field is what `--help` and the site print of it.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

FORMATS = ("table", "lines", "sequences", "synthetic")
WRITERS = ("tensorboard", "wandb", "mlflow")
# Beginnings of fields that name places, decide what is printed or how work is laid out, and do not change what is
# computed: they may change between two starts of one run, and runs that differ only here are the same experiment.
INCIDENTAL = (
    "parallel.",
    "data.cache_dir",
    "data.path",
    "data.items_path",
    "data.engine",
    "data.memory",
    "data.spill_dir",
    "train.checkpoint_every",
    "train.log_every",
    "train.writers",
    "model.remat",
    "eval.batch_rows",
)
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
    """Where interactions come from."""

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
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """The columns that `features` names."""
        return tuple(
            dict.fromkeys(name.strip() for name in self.features.split(",") if name.strip())
        )


@dataclass(frozen=True)
class FilterConfig:
    """Which interactions are kept."""

    min_rating: float = 0.0  # interactions rated below are dropped; 0 keeps all
    user_core: int = (
        0  # users with fewer interactions are dropped, repeatedly together with item_core
    )
    item_core: int = (
        0  # items with fewer interactions are dropped, repeatedly together with user_core
    )
    duplicate_events: Literal["keep", "drop"] = (
        "keep"  # drop: only the first time that a user met an item counts
    )
    first_users: int = (
        0  # keep the first N users (negative: the last N) after filtering; 0 keeps all
    )


@dataclass(frozen=True)
class SplitConfig:
    """Which events are trained on, and which are validation and test targets."""

    # leave_one_out: each user's last event is the test target, the one before it the validation target (see
    # `valid_users`). temporal: the newest periods of the whole log are.
    kind: Literal["leave_one_out", "temporal"] = "leave_one_out"
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
    # So many users, the first of a fixed shuffle, have a validation target; under leave-one-out all others train on
    # theirs, as in Petrov and Macdonald (2022). 0: all users.
    valid_users: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """The Transformer. The defaults are Sun et al. (2019) at width 64."""

    # How a history is continued. mask: a [MASK] appended to it, under bidirectional attention (BERT4Rec). last_item:
    # from its last item under causal attention (SASRec). both: the mean of the two hidden states. The last two take
    # rows that learned so (`masking.next_item_share`).
    predict_from: Literal["mask", "last_item", "both"] = "mask"
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
    # output layer. Not with norm = post and rotary positions, as the normalisation that comes first would undo it.
    scale_embeddings: bool = False
    head: Literal["transform", "tied"] = (
        "transform"  # transform: dense + GELU + LayerNorm before the item table
    )
    dropout: float = 0.1  # of embeddings and of each sub-layer's output
    attention_dropout: float = 0.1  # of attention weights
    # dense: written out in arrays. pallas_tpu, pallas_gpu: fused kernels, interpreted (slowly) on any other machine.
    # auto: the kernel of the machine, dense on CPU. All give the same model.
    attention: Literal["auto", "dense", "blockwise", "pallas_tpu"] = "auto"
    init_scale: float = 0.02  # standard deviation of the truncated normal of every weight
    dtype: Literal["float32", "bfloat16"] = (
        "float32"  # of activations and products; parameters stay float32
    )
    remat: bool = False  # recompute activations in the backward pass: less memory, more time

    @property
    def appends_mask(self) -> bool:
        """Whether a history that is to be continued ends in [MASK], which takes one of its positions."""
        return self.predict_from != "last_item"


@dataclass(frozen=True)
class MaskingConfig:
    """What rows of a batch learn: masked items (the Cloze task of BERT4Rec), or the next item (that of SASRec)."""

    probability: float = 0.2  # share of a history that is masked; at least one item is
    max_masks: int = 0  # per history; 0: no limit
    # Share of a batch's rows that learn, with the same weights, the next item of every item under causal attention.
    # 0: BERT4Rec. 1, with `model.predict_from = "last_item"`: SASRec.
    next_item_share: float = 0.0
    last_item_only: float = (
        0.0  # share of histories of which only the last item is masked, as at test time
    )
    random_token: float = (
        0.0  # share of masked slots that show a random item instead of [MASK] (BERT: 0.1)
    )
    keep_token: float = 0.0  # share of masked slots that show the item itself (BERT: 0.1)


@dataclass(frozen=True)
class LossConfig:
    """How a slot's target is told from the rest of the catalogue."""

    # softmax: exact over the whole catalogue. sampled_softmax: uniform negatives with log-Q correction.
    # gbce: Petrov and Macdonald (2023), sampled binary cross-entropy with calibration `gbce_t`.
    name: Literal["softmax", "sampled_softmax", "gbce"] = "softmax"
    negatives: int = 256  # of the sampled losses, shared by all slots of a batch
    gbce_t: float = (
        0.75  # calibration of gbce: 0 is plain binary cross-entropy, 1 undoes the sampling fully
    )
    # Items per chunk of logits; 0: as many as fit 64 MiB, but never more than 32 chunks.
    chunk_items: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam or AdamW with a warmed-up schedule over `train.steps`."""

    name: Literal["adam", "adamw"] = "adam"  # AdamW decays weights
    learning_rate: float = 1e-3  # at the end of the warm-up
    warmup_steps: int = 0  # the learning rate grows from 0 in so many steps
    schedule: Literal["constant", "linear", "cosine"] = (
        "constant"  # of the learning rate from there to the last step
    )
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
    accumulate: int = (
        1  # split a batch into this many parts and add up their gradients before the update
    )
    eval_every: int = 250  # steps between validations; the best checkpoint is chosen there
    patience: int = 0  # stop after this many validations without a better one; 0: never
    checkpoint_every: int = 250  # steps between saves
    log_every: int = 50  # steps between lines of metrics.jsonl
    on_nan: Literal["stop", "skip"] = (
        "stop"  # skip: leave out updates that are not finite and count them
    )
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
    # A target that the user has met before, where seen items are removed. rank_last: it is removed too and ranks behind all
    # candidates, as it would never be recommended. keep: it alone of the seen items stays, as in most papers' code.
    seen_targets: Literal["rank_last", "keep"] = "rank_last"
    negatives_seed: int = 0  # of pop100 and uni100: the same negatives whatever the run's seed
    batch_rows: int = 64  # rows of `model.max_length` positions that are ranked at once


@dataclass(frozen=True)
class ParallelConfig:
    """How the step is laid over devices."""

    # jit: one program over a mesh of devices. pmap: a program for each, data-parallel only. Both take the same steps.
    mode: Literal["jit", "pmap"] = "jit"
    data: int = 0  # devices that share the rows of a batch; 0: all that are left
    item_shards: int = 1  # devices that share the item table and its logits


@dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    seed: int = 0  # of parameters, batches, masks, dropout and sampled negatives of the loss
    data: DataConfig = field(default_factory=DataConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
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
        if self.masking.next_item_share == 1:
            return "SASRec" + features
        if self.masking.next_item_share == 0:
            return "BERT4Rec (Cloze)" + features
        return (
            "BERT4Rec + next item"
            + {
                "both": "",
                "mask": ", ranks from [MASK]",
                "last_item": ", ranks from the last item",
            }[self.model.predict_from]
            + features
        )

    def to_dict(self) -> dict:
        """Returns the config as nested plain dicts, as written to config.json."""
        return dataclasses.asdict(self)
