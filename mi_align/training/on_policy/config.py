"""What a run is told that samples its own responses."""

from __future__ import annotations

import dataclasses
from typing import Literal

from mi_align import checks

__all__ = ["OnPolicyConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """How responses are sampled and rewarded, and what pulls the policy back to its reference.

    Attributes:
      reward: "arithmetic"; a function as `package.module:function` or `path.py:function`; or the folder of a reward
        model.
      samples: responses to each prompt.
      max_new_tokens: the most tokens that one has, its EOS included.
      temperature: 1, as responses are scored at the temperature at which they were drawn.
      inner_steps: steps on the same responses before new ones are drawn.
      kl_weight: β, what a nat of KL(π ‖ π_ref) costs, in units of the reward, for a policy gradient; a pairwise method
        has its own, `hyper.beta`.
      kl: where β is paid. In the reward, as log π − log π_ref (k₁) of the whole response; or as a term of the loss, k₂
        or k₃. There is no k₁ in the loss: the mean of its gradient is 0, whatever the policy is (ledger 44).
      advantage: by what a reward is measured: the batch's or the group's other responses ("batch", "rloo"), the
        group's mean, its own response included ("centred"), the same in standard deviations ("group"), or nothing
        ("none"); None: the method's own.
    """

    reward: str
    samples: int = 8
    max_new_tokens: int = 64
    temperature: float = 1.0
    inner_steps: int = 1
    kl_weight: float = 0.0
    kl: Literal["k1_in_reward", "k2_in_loss", "k3_in_loss"] = "k1_in_reward"
    advantage: Literal["none", "batch", "rloo", "centred", "group"] | None = None

    def __post_init__(self) -> None:
        """Counts and ranges."""
        for name in ("samples", "max_new_tokens", "inner_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but at least 1 was wanted.")
        checks.number("kl_weight", self.kl_weight, checks.Range(at_least=0, remedy="0 leaves the reference out."))
        if self.temperature != 1:
            raise ValueError(
                f"`temperature` is {self.temperature}, but 1 was wanted: losses read log π at temperature 1, and "
                "responses drawn at another are samples of another policy. Leave it out."
            )
