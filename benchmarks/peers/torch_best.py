# SPDX-License-Identifier: Apache-2.0
"""A strong baseline: BERT4Rec in plain PyTorch, optimised for CPUs.

The model follows Sun et al. (2019): item and learned position embeddings, layer norm, dropout,
post-norm Transformer blocks, a dense layer with GELU and layer norm, and logits by the item table
and a bias. Optimisations:

* users of similar length share a batch, which is trimmed to its longest user; a batch has as many
  tokens as `batch_users` users have on average (`--batching users` takes that many users instead);
* only masked slots are multiplied with the item table, and the last block computes queries and
  everything after attention at masked slots only (`--full_last_layer` does all slots);
* fused attention (`scaled_dot_product_attention`), hence no dropout on attention weights;
* loss and gradient of the head are computed together in chunks whose logits fit into the cache
  (`--library_loss` uses `cross_entropy`);
* dropout uses one random byte per unit, drawn once for the whole step
  (`--library_dropout` uses PyTorch's);
* fused Adam; with `--compile`, torch.compile fuses the operations between matrix products.

Evaluation computes only the last slot and ranks by counting, without seen items.
`--self_check` compares loss and gradients with a padded reference with all logits and ends.
"""

from dataclasses import dataclass

from protocol import (
    PeerConfig,
    PeerData,
    StepCount,
    ndcg_at_10,
    parse_arguments,
    serve,
    set_threads,
    take_stdout,
)

PAD = 0


def add_flags(parser):
    """Add this peer's own flags."""
    parser.add_argument("--batching", choices=("tokens", "users"), default="tokens")
    parser.add_argument("--full_last_layer", action="store_true")
    parser.add_argument("--library_dropout", action="store_true")
    parser.add_argument("--library_loss", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--self_check", action="store_true")
    parser.add_argument(
        "--profile", action="store_true", help="print a profile of the step and end"
    )


arguments = parse_arguments(__doc__.splitlines()[0], add_flags)
answers = take_stdout()
config = PeerConfig.load(arguments.config)
set_threads(config.threads)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

torch.set_num_threads(config.threads)
torch.set_num_interop_threads(1)

LOGITS_AT_ONCE = (
    1_000_000  # number of logits per chunk of the head, so that they fit into the cache
)
SLOTS_AT_ONCE = 128  # at least this many slots, or the products become too small


@dataclass
class Drop:
    """Dropout for up to two layers of one shape.

    Without `chance` it is PyTorch's own with rate `rate`. Otherwise a unit stays where its byte of
    `chance` is at least `threshold`.
    """

    rate: float = 0.0
    chance: tuple[Tensor, ...] = ()
    threshold: int = 0

    @property
    def scale(self) -> float:
        """The factor of the kept units."""
        return 256 / (256 - self.threshold)


NO_DROP = Drop()


def no_dropout(layers: int, like: Tensor) -> Drop:
    """Leave everything in."""
    return NO_DROP


class AddDropped(torch.autograd.Function):
    """residual + dropout(branch) with one byte per unit in the graph."""

    @staticmethod
    def forward(
        ctx, branch: Tensor, residual: Tensor, chance: Tensor, threshold: int, scale: float
    ) -> Tensor:
        """Add the units of `branch` that stay."""
        keep = chance.ge(threshold)
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return torch.addcmul(residual, branch, keep, value=scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Propagate the gradient to the residual, and to the kept units of the branch."""
        (keep,) = ctx.saved_tensors
        return (grad * keep).mul_(ctx.scale), grad, None, None, None


def add_dropped(branch: Tensor, residual: Tensor | None, drop: Drop, layer: int) -> Tensor:
    """Return residual + dropout(branch)."""
    if drop.chance and residual is not None and not torch.compiler.is_compiling():
        return AddDropped.apply(branch, residual, drop.chance[layer], drop.threshold, drop.scale)
    if drop.chance:
        branch = branch * (drop.chance[layer] >= drop.threshold) * drop.scale
    elif drop.rate > 0:
        branch = F.dropout(branch, drop.rate)
    return branch if residual is None else residual + branch


def after_embedding(items: Tensor, positions: Tensor, norm: nn.LayerNorm, drop: Drop) -> Tensor:
    """From item and position embeddings to the first block's input."""
    return add_dropped(norm(items + positions), None, drop, 0)


def after_attention(block: nn.Module, context: Tensor, residual: Tensor, drop: Drop) -> Tensor:
    """The part of a block after attention, for any rows of units."""
    h = block.norm1(add_dropped(block.out(context), residual, drop, 0))
    return block.norm2(add_dropped(block.down(F.gelu(block.up(h))), h, drop, 1))


def before_table(head: nn.Linear, norm: nn.LayerNorm, hidden: Tensor) -> Tensor:
    """From hidden states to the vectors that are multiplied with the item table."""
    return norm(F.gelu(head(hidden)))


class TiedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of hidden @ table.T + bias, computed together with its gradient."""

    @staticmethod
    def forward(ctx, hidden: Tensor, items: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """Process the slots in chunks whose logits fit into the cache;
        the first len(bias) items compete.
        """
        slots, table = hidden.shape[0], items[: len(bias)]
        chunk = max(SLOTS_AT_ONCE, LOGITS_AT_ONCE // len(table))
        chunk = -(-slots // -(-slots // chunk))  # chunks of similar size
        grad_hidden, grad_items = torch.empty_like(hidden), torch.empty_like(items)
        grad_items[len(bias) :] = 0.0
        grad_table = grad_items[: len(bias)]
        grad_bias, loss = torch.zeros_like(bias), hidden.new_zeros(())
        for start in range(0, slots, chunk):
            h, t = hidden[start : start + chunk], targets[start : start + chunk, None]
            logits = torch.addmm(bias, h, table.t())
            picked, largest = logits.gather(1, t), logits.amax(1, keepdim=True)
            probabilities = torch.softmax(logits, 1, out=logits)
            # log Z = largest - log p(largest), and that probability is never below 1 / items.
            loss += (largest - probabilities.amax(1, keepdim=True).log_() - picked).sum()
            probabilities.scatter_add_(1, t, torch.full_like(picked, -1.0))
            torch.mm(probabilities, table, out=grad_hidden[start : start + chunk])
            grad_table.addmm_(probabilities.t(), h / slots, beta=1.0 if start else 0.0)
            grad_bias += probabilities.sum(0)
        ctx.save_for_backward(grad_hidden.div_(slots), grad_items, grad_bias.div_(slots))
        return loss / slots

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Return the gradients (the loss is the end of the graph: `grad` is 1)."""
        return *ctx.saved_tensors, None


class Chance:
    """Random bytes for all dropout layers of a step, from one draw."""

    def __init__(self, rate: float, seed: int):
        self.threshold = round(rate * 256)
        self.generator = np.random.Generator(np.random.SFC64(seed))
        self.bytes = torch.empty(0)
        self.used = 0

    def draw(self, count: int) -> None:
        """Draw for `count` units."""
        words = self.generator.integers(0, 2**64, (count + 7) // 8, dtype=np.uint64)
        self.bytes, self.used = torch.from_numpy(words.view(np.uint8)), 0

    def take(self, layers: int, like: Tensor) -> Drop:
        """Dropout for `layers` layers with the shape of `like`."""
        start, size = self.used, like.numel()
        self.used += layers * size
        parts = self.bytes[start : self.used].view(layers, *like.shape).unbind(0)
        return Drop(0.0, parts, self.threshold)


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each with dropout, residual and then layer norm."""

    def __init__(self, width: int, heads: int, ffn_width: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.up = nn.Linear(width, ffn_width)
        self.down = nn.Linear(ffn_width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)


class Model(nn.Module):
    """BERT4Rec; item 0 is padding and item `num_items + 1` the mask."""

    def __init__(self, config: PeerConfig, num_items: int):
        super().__init__()
        self.config, self.num_items = config, num_items
        self.items = nn.Parameter(torch.empty(num_items + 2, config.width))
        self.positions = nn.Parameter(torch.empty(config.max_length, config.width))
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.ffn_width) for _ in range(config.layers)
        )
        self.head = nn.Linear(config.width, config.width)
        self.head_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(num_items + 1))
        self.after_embedding, self.after_attention, self.before_table = (
            after_embedding,
            after_attention,
            before_table,
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def encode(
        self, h: Tensor, mask: Tensor | None, asked: Tensor, kept: Tensor, dropout, trim: bool
    ) -> Tensor:
        """Return the last hidden states at the given slots.

        Args:
          h: [B, L, D] the items' embeddings, padded on the right.
          mask: [B, 1, 1, L] true for items, or None if all rows are full.
          asked: [B, M] slots of each row, as indices into the flattened [B * L].
          kept: [S] indices into the flattened [B * M] of real slots; the rest is padding.
          dropout: a function of a count of layers and a tensor of their shape, for their `Drop`.
          trim: whether the last block computes its output only at the given slots.
        """
        (B, L, D), H = h.shape, self.config.heads
        h = self.after_embedding(h, self.positions[:L], self.norm, dropout(1, h))

        def split(x: Tensor) -> Tensor:
            return x.view(B, -1, H, D // H).transpose(1, 2)

        for number, block in enumerate(self.blocks):
            if number + 1 == len(self.blocks) and trim:
                flat = h.view(B * L, D)
                rows = flat.index_select(0, asked.view(-1))
                weight, bias = block.qkv.weight, block.qkv.bias
                q = F.linear(rows, weight[:D], bias[:D])
                k, v = F.linear(h, weight[D:], bias[D:]).split(D, -1)
                context = F.scaled_dot_product_attention(split(q), split(k), split(v), mask)
                context = context.transpose(1, 2).reshape(-1, D).index_select(0, kept)
                return self.after_attention(
                    block, context, rows.index_select(0, kept), dropout(2, context)
                )
            q, k, v = block.qkv(h).split(D, -1)
            context = F.scaled_dot_product_attention(split(q), split(k), split(v), mask)
            context = context.transpose(1, 2).reshape(B, L, D)
            h = self.after_attention(block, context, h, dropout(2, context))
        return h.view(B * L, D).index_select(0, asked.view(-1).index_select(0, kept))

    @property
    def table(self) -> Tensor:
        """The item table without the mask; row 0 is padding, as in the other peers."""
        return self.items[: self.num_items + 1]


def padded(data: PeerData, starts: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """Return histories as int64 [B, width], padded on the right."""
    column = np.arange(width)
    places = np.minimum(starts[:, None] + column, len(data.items) - 1)
    return np.where(column < lengths[:, None], data.items[places], PAD).astype(np.int64)


def slots_of(chosen: np.ndarray) -> tuple[Tensor, Tensor]:
    """Turn a [B, L] choice of slots into `asked` [B, M] and `kept` [S] of `Model.encode`."""
    (B, L), counts = chosen.shape, chosen.sum(1)
    M = int(counts.max())
    flat = np.flatnonzero(chosen)
    row = np.repeat(np.arange(B), counts)
    place = row * M + np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    asked = np.repeat(np.arange(B) * L, M)
    asked[place] = flat
    return torch.from_numpy(asked.reshape(B, M)), torch.from_numpy(place)


class Batches:
    """Infinite training batches: users of similar length together, a new order every epoch."""

    def __init__(self, data: PeerData, config: PeerConfig, batching: str, seed: int):
        self.data, self.config = data, config
        self.rng = np.random.default_rng(seed)
        ends = data.offsets[1:] - 2
        self.lengths = np.clip(ends - data.offsets[:-1], 0, config.max_length)
        self.starts = ends - self.lengths
        self.users = np.flatnonzero(self.lengths > 0)
        self.by_tokens = batching == "tokens"
        self.budget = config.batch_users * float(self.lengths[self.users].mean())
        self.queue: list[np.ndarray] = []

    def epoch(self) -> list[np.ndarray]:
        """Split the users, sorted by length with random ties, into batches in random order."""
        users = self.rng.permutation(self.users)
        users = users[np.argsort(self.lengths[users], kind="stable")]
        if self.by_tokens:
            tokens = np.cumsum(self.lengths[users])
            count = max(1, round(tokens[-1] / self.budget))
            cuts = np.searchsorted(tokens, np.arange(1, count) * tokens[-1] / count)
        else:
            cuts = np.arange(self.config.batch_users, len(users), self.config.batch_users)
        batches = np.split(users, cuts)
        return [batches[i] for i in self.rng.permutation(len(batches))]

    def next(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids [B, L], the masked slots [B, L], and the lengths [B]."""
        if not self.queue:
            self.queue = self.epoch()
        users = self.queue.pop()
        lengths = self.lengths[users]
        L = int(lengths.max())
        ids = padded(self.data, self.starts[users], lengths, L)
        chosen = (self.rng.random(ids.shape, np.float32) < self.config.mask_probability) & (
            ids != PAD
        )
        bare = np.flatnonzero(~chosen.any(1))  # a user without a masked slot gets one
        chosen[bare, self.rng.integers(0, lengths[bare])] = True
        return ids, chosen, lengths


class Trainer:
    """One model with its optimizer, its batches and its evaluation."""

    def __init__(self, data: PeerData, config: PeerConfig, flags):
        torch.manual_seed(flags.seed)
        self.data, self.config, self.flags = data, config, flags
        self.model = Model(config, data.num_items)
        self.batches = Batches(data, config, flags.batching, flags.seed)
        self.chance = Chance(config.dropout, flags.seed)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, fused=True
        )
        if flags.compile:
            for name in ("after_embedding", "after_attention", "before_table"):
                setattr(self.model, name, torch.compile(getattr(self.model, name), dynamic=True))

    def backward(self, ids: np.ndarray, chosen: np.ndarray, lengths: np.ndarray, dropout) -> Tensor:
        """Return the mean cross-entropy at the masked slots and leave its gradient
        in the parameters.
        """
        model, flags = self.model, self.flags
        targets = torch.from_numpy(ids[chosen])
        full = int(lengths.min()) == ids.shape[1]
        mask = None if full else torch.from_numpy(ids != PAD)[:, None, None, :]
        asked, kept = slots_of(chosen)
        inputs = torch.from_numpy(np.where(chosen, self.data.num_items + 1, ids))
        # The lookup is outside the graph: its gradient is added to the head's gradient directly.
        embedded = F.embedding(inputs, model.items.detach()).requires_grad_()
        hidden = model.encode(embedded, mask, asked, kept, dropout, not flags.full_last_layer)
        hidden = model.before_table(model.head, model.head_norm, hidden)
        if flags.library_loss:
            loss = F.cross_entropy(F.linear(hidden, model.table, model.bias), targets)
        else:
            loss = TiedCrossEntropy.apply(hidden, model.items, model.bias, targets)
        loss.backward()
        model.items.grad.index_add_(0, inputs.view(-1), embedded.grad.view(-1, embedded.shape[-1]))
        return loss.detach()

    def step(self) -> StepCount:
        """Train one step."""
        ids, chosen, lengths = self.batches.next()
        if self.flags.library_dropout:
            library = Drop(self.config.dropout)
            dropout = lambda layers, like: library  # noqa: E731
        else:
            trimmed = not self.flags.full_last_layer
            rows = (1 + 2 * (self.config.layers - trimmed)) * ids.size + 2 * trimmed * int(
                chosen.sum()
            )
            self.chance.draw(rows * self.config.width)
            dropout = self.chance.take
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(ids, chosen, lengths, dropout)
        self.optimizer.step()
        return StepCount(int(lengths.sum()), ids.size, len(ids))

    @torch.inference_mode()
    def evaluate(self, count: int) -> dict:
        """Rank the test item of the first `count` users over the whole catalogue,
        seen items removed.
        """
        data, config, model = self.data, self.config, self.model
        begin, end = data.offsets[:-1][:count], data.offsets[1:][:count] - 1
        lengths = np.clip(end - begin, 0, config.max_length - 1)
        order = np.argsort(lengths, kind="stable")
        table, bias = model.table[1:], model.bias[1:]
        rows_at_once = max(16, 8 * LOGITS_AT_ONCE // data.num_items)
        ranks = np.empty(len(order), np.int64)
        batch = min(256, max(config.batch_users, 64))
        for first in range(0, len(order), batch):
            users = order[first : first + batch]
            L = int(lengths[users].max()) + 1
            ids = padded(data, end[users] - lengths[users], lengths[users], L)
            rows = np.arange(len(users))
            ids[rows, lengths[users]] = data.num_items + 1
            mask = (
                None
                if lengths[users].min() + 1 == L
                else torch.from_numpy(ids != PAD)[:, None, None, :]
            )
            asked = torch.from_numpy(rows * L + lengths[users])[:, None]
            hidden = model.encode(
                F.embedding(torch.from_numpy(ids), model.items),
                mask,
                asked,
                torch.from_numpy(rows),
                no_dropout,
                True,
            )
            hidden = model.before_table(model.head, model.head_norm, hidden)
            for part in range(0, len(users), rows_at_once):
                some = users[part : part + rows_at_once]
                scores = torch.addmm(bias, hidden[part : part + rows_at_once], table.t())
                targets = torch.from_numpy(data.items[end[some]].astype(np.int64) - 1)
                own = scores.gather(1, targets[:, None])
                counts = end[some] - begin[some]
                which = np.repeat(
                    begin[some] - np.r_[0, np.cumsum(counts)[:-1]], counts
                ) + np.arange(counts.sum())
                seen = (
                    np.repeat(np.arange(len(some)), counts) * data.num_items + data.items[which] - 1
                )
                scores.view(-1).index_fill_(0, torch.from_numpy(seen), -torch.inf)
                # Ties count against the target.
                ranks[some] = scores.ge(own).sum(1).numpy()
        return {"users": len(order), "ndcg@10": ndcg_at_10(ranks)}


def reference_backward(model: Model, ids: np.ndarray, chosen: np.ndarray) -> Tensor:
    """Compute loss and gradients the plain way: rows padded to max_length, logits at every slot."""
    config = model.config
    rows, L = len(ids), config.max_length
    inputs = np.zeros((rows, L), np.int64)
    inputs[:, : ids.shape[1]] = np.where(chosen, model.num_items + 1, ids)
    x = torch.from_numpy(inputs)
    labels = torch.full((rows, L), -100)
    labels[:, : ids.shape[1]] = torch.from_numpy(np.where(chosen, ids, -100))
    h = model.norm(model.items[x] + model.positions[None])
    forbidden = (x == PAD)[:, None, None, :].float() * -1e9
    for block in model.blocks:
        q, k, v = (
            part.reshape(rows, L, config.heads, -1).permute(0, 2, 1, 3)
            for part in block.qkv(h).chunk(3, dim=-1)
        )
        weights = torch.softmax(
            q @ k.transpose(-1, -2) / (config.width // config.heads) ** 0.5 + forbidden, -1
        )
        h = block.norm1(h + block.out((weights @ v).permute(0, 2, 1, 3).reshape(rows, L, -1)))
        h = block.norm2(h + block.down(F.gelu(block.up(h))))
    h = model.head_norm(F.gelu(model.head(h)))
    logits = h @ model.items[: model.num_items + 1].T + model.bias
    loss = F.cross_entropy(logits.reshape(rows * L, -1), labels.reshape(-1), ignore_index=-100)
    loss.backward()
    return loss.detach()


def self_check(trainer: Trainer) -> None:
    """Compare loss and gradients with the reference after some training; raise if they differ."""
    for _ in range(3):
        trainer.step()
    for _ in range(3):
        ids, chosen, lengths = trainer.batches.next()
        some = np.unique(np.linspace(0, len(ids) - 1, 12).astype(int))
        ids, chosen, lengths = ids[some], chosen[some], lengths[some]
        values, gradients = [], []
        for way in (
            lambda: trainer.backward(ids, chosen, lengths, no_dropout),
            lambda: reference_backward(trainer.model, ids, chosen),
        ):
            trainer.model.zero_grad()
            values.append(way().item())
            gradients.append({k: p.grad.clone() for k, p in trainer.model.named_parameters()})
        worst = max(
            float((gradients[0][k] - g).abs().max() / g.abs().max().clamp_min(1e-3))
            for k, g in gradients[1].items()
        )
        print(
            f"loss {values[0]:.7f}, reference {values[1]:.7f}, largest gradient error {worst:.1e}",
            file=answers,
        )
        if abs(values[0] - values[1]) > 1e-5 * abs(values[1]) or worst > 1e-3:
            raise SystemExit("self-check failed")
    print("self-check passed", file=answers)


def main() -> None:
    """Serve the benchmark's driver, or check or profile the step."""
    trainer = Trainer(PeerData.load(arguments.data), config, arguments)
    if arguments.self_check:
        self_check(trainer)
        return
    if arguments.profile:
        for _ in range(3):
            trainer.step()
        with torch.profiler.profile() as profile:
            for _ in range(4):
                trainer.step()
        print(
            profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25), file=answers
        )
        return
    about = {
        "peer": "torch_best",
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "version": f"torch {torch.__version__}",
    }
    serve(answers, arguments, trainer.step, trainer.evaluate, about, warm_up_steps=4)


if __name__ == "__main__":
    main()
