"""How much is trained: numbers, in one place."""

from __future__ import annotations

import dataclasses

__all__ = ["FULL", "QUICK", "Plan"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The small language model, its supervised training, and the preference training whose curves are shown.

    Attributes:
      width, layers, heads: the decoder's shape.
      max_prompt, max_response: tokens that are kept of each, BOS and EOS included.
      supervised_examples: how many preferences the supervised training sees (their chosen responses).
      supervised_steps, supervised_batch, supervised_rate: that training, by Adam.
      pairs: how many preferences each seed learns.
      batch: of how many of them a step sees; it divides `pairs`.
      steps: how many steps of DPO and of MIO.
      rate: Adam's learning rate in both; over the last fifth of the steps it falls to 0.
      beta: DPO's β. MIO has twice that, so that both begin with one gradient (ledger 20).
      seeds: over how many seeds; each has preferences and an order of its own, and all have one starting point.
      segment: steps in one compiled program, between two ticks of the progress bar; it divides both numbers of steps.
      certificate_prompts, certificate_negatives: size of the batch of the certificates, and its K.
    """

    width: int = 32
    layers: int = 2
    heads: int = 4
    max_prompt: int = 16
    max_response: int = 8
    supervised_examples: int = 2000
    supervised_steps: int = 600
    supervised_batch: int = 64
    supervised_rate: float = 3e-3
    pairs: int = 64
    batch: int = 16
    steps: int = 1000
    rate: float = 1e-3
    beta: float = 0.5
    seeds: int = 3
    segment: int = 50
    certificate_prompts: int = 16
    certificate_negatives: int = 4

    def __post_init__(self) -> None:
        """Refuse numbers that do not divide each other."""
        for name, whole, part in [
            ("steps", self.steps, self.segment),
            ("supervised_steps", self.supervised_steps, self.segment),
            ("pairs", self.pairs, self.batch),
        ]:
            if whole % part:
                raise ValueError(f"`{name}` is {whole}, but a multiple of {part} was wanted.")

    @property
    def mio_beta(self) -> float:
        """MIO's β: twice DPO's."""
        return 2 * self.beta

    def for_text(self) -> Plan:
        """The same for real texts, whose responses are twenty times as long as a sum: fewer steps of fewer of them."""
        return dataclasses.replace(
            self,
            max_prompt=64,
            max_response=64,
            supervised_batch=16,
            pairs=32,
            batch=8,
            steps=self.segment * max(1, 3 * self.steps // (10 * self.segment)),
            certificate_prompts=8,
        )


#: What `mi-align reproduce` does: about a minute on 2 CPU cores.
FULL = Plan()
#: What `mi-align reproduce --quick` does: half a minute.
QUICK = Plan(layers=1, supervised_steps=300, steps=500, seeds=2)
