# SPDX-License-Identifier: Apache-2.0
"""The fields of a configuration, with their defaults, documentation and accepted values."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from bert4rec_jax.config.option import (
    BELOW_ONE,
    INNER_SHARE,
    INT64,
    NONZERO_SHARE,
    POSITIVE,
    SEED,
    SHARE,
    at_least,
    matching,
    one_of,
    option,
    some_of,
)

MOVIELENS = ("ml-100k", "ml-1m", "ml-10m", "ml-20m", "ml-25m", "ml-32m", "ml-latest-small")
FORMATS = ("table", "lines", "sequences", "synthetic")
WRITERS = ("tensorboard", "wandb", "mlflow")
# Prefixes of the fields that do not change the results: paths, output, and how the work is laid
# out. They may change between two starts of a run, and two runs that differ only in them are the
# same experiment.
NOT_IDENTITY = (
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


@dataclass(frozen=True)
class SyntheticConfig:
    """The generated log (`data.source=synthetic`)."""

    users: int = option(2000, "Number of users.", at_least(1))
    # Not `items`: ConfigDict has a method of that name.
    num_items: int = option(500, "Number of items.", at_least(2))
    genres: int = option(
        10,
        "Number of genres. Each item belongs to one, and users stay within a genre for a while.",
        at_least(1),
    )
    mean_length: int = option(40, "Mean number of events per user.", at_least(5))
    seed: int = option(0, "Seed of the log. It does not depend on the seed of the run.", SEED)


@dataclass(frozen=True)
class DataConfig:
    """Where the interactions come from and how they are read."""

    source: str = option(
        "ml-100k",
        "A MovieLens data set or a format. MovieLens is downloaded, or read from the original "
        "files in `path`. table: delimited text or Parquet, or a folder with "
        "interactions.parquet and items.parquet. lines: one `user item` pair per line. sequences: "
        "one user per line, as in `user item item ...`. synthetic: a generated log.",
        one_of(MOVIELENS + FORMATS),
    )
    path: str = option(
        "", "File or folder with the data. If empty, a MovieLens data set is downloaded."
    )
    items_path: str = option("", "Optional item table for table, lines and sequences.")
    cache_dir: str = option(
        "",
        "Folder for downloads and prepared data. If empty, $BERT4REC_DATA or "
        "~/.cache/bert4rec_jax.",
    )
    engine: Literal["duckdb", "spark"] = option(
        "duckdb",
        "Engine that prepares the data. Both prepare logs of any size, with the same result: "
        "duckdb on one machine, spark on a cluster.",
    )
    engine_master: str = option(
        "local[2]", "Master URL of Spark, such as local[4], yarn, k8s://... or spark://..."
    )
    memory: str = option(
        "",
        "Memory limit of the engine, as in 8GiB. If empty, half of the free memory.",
        matching(
            r"(\d+(\.\d+)? ?[KMGT]i?B)?", "a size such as '8GiB', or '' for half of what is free"
        ),
    )
    spill_dir: str = option(
        "",
        "Folder for data that does not fit into memory, and for finished stages that a second "
        "start continues from. If empty, next to the prepared data.",
    )
    separator: str = option(
        "",
        "Column separator of a text file (source=table). If empty, it is detected from the "
        "extension and the header.",
    )
    user_column: str = option(
        "user",
        "User column of the log: a name, or its number (from 1) if the file lacks a header.",
    )
    item_column: str = option("item", "Item column of the log, as in user_column.")
    time_column: str = option(
        "timestamp", "Time column of the log, as in user_column. If empty, keep the file order."
    )
    rating_column: str = option(
        "", "Rating column of the log, as in user_column. If empty, ratings are not read."
    )
    where: str = option(
        "",
        "SQL condition on the rows of a table, as in `played_ratio >= 50`.",
    )
    key_column: str = option(
        "", "Column of the item table with the item ids. If empty, the name in item_column."
    )
    title_column: str = option("title", "Column of the item table with the titles.")
    year_column: str = option("year", "Column of the item table with the years.")
    genres_column: str = option(
        "genres", "Column of the item table with the genres, separated by |."
    )
    features: str = option(
        "",
        "Comma-separated columns of the item table to use as item features: title, year, genres, "
        "or any other column. A word or value that at least 5 items share is a feature. The "
        "embedding of an item is its own embedding plus the mean of the embeddings of its "
        "features.",
    )
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """The columns in `features`, without duplicates."""
        names = [name.strip() for name in self.features.split(",")]
        return tuple(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True)
class FilterConfig:
    """Which interactions are kept."""

    min_rating: float = option(
        0.0, "Drop interactions with a lower rating. 0 keeps all.", at_least(0)
    )
    user_core: int = option(
        0,
        "Drop users with fewer interactions, repeatedly and together with item_core.",
        at_least(0),
    )
    item_core: int = option(
        0,
        "Drop items with fewer interactions, repeatedly and together with user_core.",
        at_least(0),
    )
    duplicate_events: Literal["keep", "drop"] = option(
        "keep", "drop: keep only the first interaction of a user with an item."
    )
    first_users: int = option(
        0,
        "Keep only the first N users after filtering (negative: the last N). 0 keeps all.",
        INT64,
    )


@dataclass(frozen=True)
class SplitConfig:
    """Which events train the model, and which are validation and test targets."""

    kind: Literal["leave_one_out", "temporal"] = option(
        "leave_one_out",
        "leave_one_out: the last event of each user is the test target and the one before it the "
        "validation target. temporal: the newest periods of the whole log are test and "
        "validation.",
    )
    test_share: float = option(
        0.1, "temporal: share of all interactions, the newest, in the test period.", INNER_SHARE
    )
    valid_share: float = option(
        0.1,
        "temporal: share of all interactions in the validation period, before the test period.",
        POSITIVE,
    )
    period_target: Literal["first", "last"] = option(
        "first",
        "temporal: which event of a user in a period is the target. first: the model sees no "
        "other event of the period. last: the earlier events of the period belong to the history.",
    )
    test_seconds: int = option(
        0,
        "temporal: length of the test period, in units of the time column, instead of test_share. "
        "The period ends with the last event of the log. 0: use the shares.",
        at_least(0),
    )
    valid_seconds: int = option(
        0, "Length of the validation period, if test_seconds is set.", at_least(0)
    )
    gap_seconds: int = option(
        0,
        "Length of the gap between the validation and the test period, if test_seconds is set. "
        "Its events are neither trained on nor predicted.",
        at_least(0),
    )
    valid_users: int = option(
        0,
        "Number of users with a validation target, the first of a fixed shuffle; 0: all users. "
        "With leave_one_out, the other users train on theirs, as in Petrov and Macdonald (2022).",
        at_least(0),
    )


@dataclass(frozen=True)
class ModelConfig:
    """The Transformer. The defaults are those of Sun et al. (2019) at width 64."""

    predict_from: Literal["mask", "last_item", "both"] = option(
        "mask",
        "Position that predicts the next item. mask: a [MASK] appended to the history, with "
        "bidirectional attention (BERT4Rec). last_item: the last item, with causal attention "
        "(SASRec). both: the mean of the two hidden states. The last two require rows trained on "
        "the next item (masking.next_item_share).",
    )
    width: int = option(64, "Size of the embeddings and hidden states.", at_least(1))
    layers: int = option(2, "Number of Transformer blocks.", at_least(1))
    heads: int = option(2, "Number of attention heads, which share the width.", at_least(1))
    ffn_width: int = option(256, "Hidden size of the feed-forward networks.", at_least(1))
    max_length: int = option(
        200, "Maximum length of a history, including the position to predict.", at_least(2)
    )
    norm: Literal["post", "pre"] = option(
        "post",
        "Where LayerNorm is applied. post: after the residual sum, as in BERT4Rec. pre: before "
        "each sub-layer (Xiong et al. 2020).",
    )
    positions: Literal["left", "right", "rotary"] = option(
        "left",
        "left, right: learned position embeddings, where position 0 is the oldest or the newest "
        "item. rotary: rotary position embeddings (Su et al. 2021).",
    )
    scale_embeddings: bool = option(
        False,
        "Multiply the input embeddings by sqrt(width) (Vaswani et al. 2017, section 3.4). Not "
        "with norm=post and positions=rotary, where the first LayerNorm would undo it.",
    )
    head: Literal["transform", "tied"] = option(
        "transform",
        "Output layer. transform: dense, GELU and LayerNorm before the item table. tied: the item "
        "table alone.",
    )
    dropout: float = option(
        0.1, "Dropout rate of the embeddings and of the output of each sub-layer.", BELOW_ONE
    )
    attention_dropout: float = option(0.1, "Dropout rate of the attention weights.", BELOW_ONE)
    attention: Literal["auto", "dense", "blockwise", "pallas_tpu"] = option(
        "auto",
        "Implementation of attention; all give the same model. dense: all weights of a row in "
        "memory. blockwise: a loop over blocks of keys, with memory linear in the length. "
        "pallas_tpu: a fused kernel, interpreted (slowly) on other devices. auto: pallas_tpu on "
        "TPUs, dense on CPUs, and on GPUs dense up to a length of 1,024 and blockwise above.",
    )
    matmul_precision: Literal["default", "high", "highest"] = option(
        "default",
        "Precision of float32 matrix products on accelerators. default: the fastest (TF32 on "
        "NVIDIA, bfloat16 on TPU). high: three passes of those (TF32x3, bfloat16x3). highest: "
        "float32. Without effect on CPUs.",
    )
    init_scale: float = option(
        0.02, "Standard deviation of the truncated normal that initializes weights.", POSITIVE
    )
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "Type of activations and matrix products. Parameters are always float32."
    )
    remat: bool = option(
        False, "Recompute activations in the backward pass: less memory, more time."
    )

    @property
    def appends_mask(self) -> bool:
        """Whether ranking appends a [MASK] to a history, which takes one of its positions."""
        return self.predict_from != "last_item"

    @property
    def max_history(self) -> int:
        """Number of items that the model reads; the newest ones if the history is longer."""
        return self.max_length - self.appends_mask


@dataclass(frozen=True)
class MaskingConfig:
    """Training tasks: masked items (the Cloze task of BERT4Rec) and the next item (SASRec)."""

    probability: float = option(
        0.2, "Share of a history that is masked; at least one item is.", NONZERO_SHARE
    )
    max_masks: int = option(
        0, "Maximum number of masked items per history; 0: no limit.", at_least(0)
    )
    next_item_share: float = option(
        0.0,
        "Share of the rows of a batch that learn the next item of every item, under causal "
        "attention and with the same weights. 0: BERT4Rec. 1, with model.predict_from=last_item: "
        "SASRec.",
        SHARE,
    )
    last_item_only: float = option(
        0.0, "Share of histories in which only the last item is masked, as in inference.", SHARE
    )
    random_token: float = option(
        0.0, "Share of masked items replaced with a random item (BERT: 0.1).", SHARE
    )
    keep_token: float = option(0.0, "Share of masked items left visible (BERT: 0.1).", SHARE)


@dataclass(frozen=True)
class LossConfig:
    """The training loss."""

    name: Literal["softmax", "sampled_softmax", "gbce"] = option(
        "softmax",
        "softmax: exact, over all items. sampled_softmax: uniform negatives with log-Q "
        "correction. gbce: sampled binary cross-entropy with calibration (Petrov and Macdonald "
        "2023).",
    )
    negatives: int = option(
        256, "Number of negatives of the sampled losses, shared by a batch.", at_least(1)
    )
    gbce_t: float = option(
        0.75,
        "Calibration of gbce. 0: plain binary cross-entropy. 1: corrects fully for the sampling.",
        SHARE,
    )
    chunk_items: int = option(
        0,
        "Number of items per chunk of logits. 0: as many as fit into 64 MiB, in at most 32 chunks.",
        at_least(0),
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam or AdamW, with a learning rate schedule over `train.steps`."""

    name: Literal["adam", "adamw"] = option("adam", "adamw: Adam with weight decay.")
    learning_rate: float = option(1e-3, "Peak learning rate, after the warm-up.", POSITIVE)
    warmup_steps: int = option(
        0,
        "Number of steps in which the learning rate grows from 0 to its peak. If it is not below "
        "train.steps, half of train.steps.",
        at_least(0),
    )
    schedule: Literal["constant", "linear", "cosine"] = option(
        "constant", "Learning rate schedule from the end of the warm-up to the last step."
    )
    final_fraction: float = option(
        0.0, "Final learning rate of linear and cosine, as a fraction of the peak.", SHARE
    )
    beta1: float = option(0.9, "Decay rate of Adam's mean of the gradient.", BELOW_ONE)
    beta2: float = option(0.999, "Decay rate of Adam's mean of the squared gradient.", BELOW_ONE)
    weight_decay: float = option(
        0.0, "Weight decay of adamw. Biases and LayerNorm are not decayed.", at_least(0)
    )
    clip_norm: float = option(
        0.0, "Maximum global norm of the gradient; 0: no clipping.", at_least(0)
    )


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, batch size, validation and checkpoints."""

    steps: int = option(1000, "Number of updates in the whole run.", at_least(1))
    batch_rows: int = option(
        32,
        "Batch size, in rows. A row has model.max_length positions and holds as many histories as "
        "fit.",
        at_least(1),
    )
    windows: Literal["newest", "random"] = option(
        "newest", "Part of a history longer than model.max_length that an epoch uses."
    )
    accumulate: int = option(
        1,
        "Number of parts that a batch is split into. Their gradients are summed before the update.",
        at_least(1),
    )
    eval_every: int = option(
        250,
        "Steps between validations. The best checkpoint is one of these steps.",
        at_least(1),
    )
    patience: int = option(
        0,
        "Early stopping: stop after this many validations without an improvement; 0: never.",
        at_least(0),
    )
    checkpoint_every: int = option(250, "Steps between checkpoints.", at_least(1))
    log_every: int = option(50, "Steps between lines of metrics.jsonl.", at_least(1))
    on_nan: Literal["stop", "skip"] = option(
        "stop",
        "If an update is not finite. stop: end the run with an error. skip: leave the update out "
        "and count it.",
    )
    writers: str = option(
        "",
        "Where to write metrics in addition to metrics.jsonl: tensorboard, wandb, mlflow, "
        "separated by commas.",
        some_of(WRITERS),
    )


@dataclass(frozen=True)
class EvalConfig:
    """How validation and test rank the items."""

    protocol: Literal["full", "pop100", "uni100"] = option(
        "full",
        "Candidates. full: all items. pop100, uni100: the target and 100 items that the user "
        "never interacted with, drawn by popularity or uniformly.",
    )
    metric: str = option(
        "ndcg@10",
        "Validation metric that chooses the best checkpoint.",
        matching(
            r"(ndcg|hr|recall|mrr|map)@(1|5|10|20|50|100)|mrr",
            "mrr, or ndcg, hr, recall, mrr or map at 1, 5, 10, 20, 50 or 100, as in ndcg@10",
        ),
    )
    ties: Literal["pessimistic", "expected"] = option(
        "pessimistic",
        "Rank of a target among candidates with the same score. pessimistic: the last. expected: "
        "the middle.",
    )
    filter_seen: bool = option(
        True,
        "Remove the items of a user's history from the candidates, as `recommend` does.",
    )
    seen_targets: Literal["rank_last", "keep"] = option(
        "rank_last",
        "If filter_seen is set and the history contains the target. rank_last: rank it behind all "
        "candidates, because it would never be recommended. keep: keep it as a candidate, as most "
        "papers' code does.",
    )
    negatives_seed: int = option(
        0,
        "Seed of the negatives of pop100 and uni100. It does not depend on the seed of the run.",
        SEED,
    )
    batch_rows: int = option(
        64, "Rows of model.max_length positions that are ranked at once.", at_least(1)
    )


@dataclass(frozen=True)
class ParallelConfig:
    """How work is divided among devices."""

    mode: Literal["jit", "pmap"] = option(
        "jit",
        "jit: one program for a mesh of devices. pmap: one program per device, data-parallel "
        "only. Both take the same steps.",
    )
    data: int = option(
        0, "Number of devices that share the rows of a batch; 0: all that remain.", at_least(0)
    )
    item_shards: int = option(
        1, "Number of devices that share the item table and its logits.", at_least(1)
    )


@dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    seed: int = option(
        0,
        "Seed of the parameters, batches, masks, dropout and sampled negatives of the loss.",
        SEED,
    )
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
        """Name of the model in tables, by the tasks that it is trained on."""
        features = ", item features" if self.data.feature_columns else ""
        if self.masking.next_item_share == 1:
            return "SASRec" + features
        if self.masking.next_item_share == 0:
            return "BERT4Rec (Cloze)" + features
        ranking = {
            "both": "",
            "mask": ", ranks from [MASK]",
            "last_item": ", ranks from the last item",
        }[self.model.predict_from]
        return "BERT4Rec + next item" + ranking + features

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as nested dicts, as written to config.json."""
        return dataclasses.asdict(self)
