"""A recommender of two towers: users and items as vectors whose product is the score.

Owns the definition; it trains on users and the items that they took, and is served as a tensor
model. The loss is a softmax over all items, so nothing is sampled, and how many users and items
there are is part of the configuration. Invariant: scores are cosines over a temperature, so that
popular items do not win by their length alone.

Shape suffixes: B batch, I items, W width, K recommendations, S items that a user has.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.wire import Signature, TensorSpec

# Cosines are at most 1; over this they can say "almost certainly".
TEMPERATURE = 0.07
# Below every score that there can be: of what is left out.
LEFT_OUT = -2 / TEMPERATURE


class Tower(nn.Module):
    """A number to a vector of length one."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, width)
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.table(numbers)
        return F.normalize(x + self.outer(F.silu(self.inner(x))), dim=-1)


class TwoTower(nn.Module):
    """`users` and `items` count them; `top` are recommended. Raises ValueError for bad numbers.

    `again`: whether what a user took may be recommended to it (plays, groceries). Where not (films,
    articles), a request names as `seen` the items that its user has, filled up with -1 to any
    length; requests of one length share batches. An answer that has fewer items left ends with -1.
    """

    def __init__(
        self, users: int, items: int, width: int = 64, top: int = 10, again: bool = True
    ) -> None:
        super().__init__()
        for name, value in (("users", users), ("items", items), ("width", width), ("top", top)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number above 0, got {value!r}")
        self.top = min(top, items)
        seen = () if again else (TensorSpec("seen", "INT64", (-1,)),)
        self.user, self.item = Tower(users, width), Tower(items, width)
        self.signature = Signature(
            inputs=(TensorSpec("user", "INT64", (1,)), *seen),
            outputs=(
                TensorSpec("items", "INT64", (self.top,)),
                TensorSpec("scores", "FP32", (self.top,)),
            ),
            max_batch_size=256,
        )

    def scores(self, user_B: Tensor) -> Tensor:
        """[B, I]."""
        items_I = torch.arange(self.item.table.num_embeddings, device=user_B.device)
        return self.user(user_B) @ self.item(items_I).T / TEMPERATURE  # type: ignore[no-any-return]

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """How surprising the item is that each `user` [B] took; and how often it is among the
        recommended ones. Both are integers; `item` is [B]. Where there is `seen` [B, S], that is
        left out of the recommended ones."""
        scores_BI, item_B = self.scores(batch["user"].reshape(-1)), batch["item"].reshape(-1)
        left_BI = _without(scores_BI, batch["seen"]) if "seen" in batch else scores_BI
        best_BK = left_BI.topk(self.top, dim=-1).indices
        hit = (best_BK == item_B[:, None]).any(-1).float().mean()
        return F.cross_entropy(scores_BI, item_B), {"recall": hit}

    def infer(self, user: Tensor, seen: Tensor | None = None) -> Mapping[str, Tensor]:
        known, items = self.user.table.num_embeddings, self.item.table.num_embeddings
        if bool(((user < 0) | (user >= known)).any()):
            raise ValueError(f"user must be from 0 to {known - 1}")
        if seen is not None and bool(((seen < -1) | (seen >= items)).any()):
            raise ValueError(f"seen must be from 0 to {items - 1}, or -1 for none")
        scores_BI = self.scores(user.reshape(-1))
        if seen is not None:
            scores_BI = _without(scores_BI, seen)
        best = scores_BI.topk(self.top, dim=-1)
        found_BK = best.indices.masked_fill(best.values == LEFT_OUT, -1)
        return {"items": found_BK, "scores": best.values}


def _without(scores_BI: Tensor, seen_BS: Tensor) -> Tensor:
    """The scores, but for what was seen; -1 stands for nothing."""
    none = scores_BI.shape[1]
    places_BS = seen_BS.masked_fill(seen_BS < 0, none)
    wide_BI = F.pad(scores_BI, (0, 1))  # one more place, for nothing
    return wide_BI.scatter(1, places_BS, LEFT_OUT)[:, :none]
