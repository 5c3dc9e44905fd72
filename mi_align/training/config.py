"""What a run of training is told: one frozen dataclass for each part, written as YAML by its user."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from mi_align import checks
from mi_align.models.config import COMPUTED
from mi_align.models.lora import LoraConfig
from mi_align.training.on_policy.config import OnPolicyConfig

__all__ = ["DataConfig", "ModelConfig", "OptimiserConfig", "RunConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is trained.

    Attributes:
      pretrained: a folder of safetensors or the id of a repository on the Hub; None: a fresh one of the given `shape`.
      shape: fields of `models.DecoderConfig` of a fresh model, such as `width`, `layers`, `heads`.
      dtype: of the parameters; None: as in the files, float32 for a fresh model.
      compute_dtype: of the forward and backward pass, to which the parameters are cast in each step, while the
        optimiser and what is saved keep theirs; None: that of the parameters.
      remat: what the backward pass makes again: "none", all inside "layers", or all but matrix products ("dots").
      attention: the kernel that attends: "auto", the platform's, or "xla", "cudnn", "splash" (`models.DecoderConfig`).
      memory_budget: bytes of logits, of a micro-batch on a device, that are kept for the backward pass instead of being
        made again; None: one tile's (`logprobs.token_logps`). The first step's margins are 0, with it to rounding only.
      trained: beginnings of the paths of the parameters that are trained, e.g. `blocks.attention`; none named: all.
      lora: a fresh adapter, which alone is trained: `rank`, `alpha`, `targets`, `rslora`; None: there is none.
      adapter: a folder in PEFT's format with an adapter to begin from, which alone is trained.
    """

    pretrained: str | None = None
    shape: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] | None = None
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    remat: Literal["none", "layers", "dots"] = "none"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    memory_budget: int | None = None
    trained: tuple[str, ...] = ()
    lora: LoraConfig | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        """A model has one origin, and one account of what of it is trained."""
        if self.pretrained is not None and self.shape:
            raise ValueError("`pretrained` and `shape` are both given: the shape of a pretrained model is its own.")
        if self.memory_budget is not None:
            checks.number("memory_budget", self.memory_budget, checks.Range(at_least=0, remedy="It is in bytes."))
        given = [f"`{name}`" for name in ("trained", "lora", "adapter") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} are given, but one of them says what is trained: named parts, a fresh adapter, "
                "or one from a folder, whose rank, α and targets are its own."
            )

    @property
    def computed(self) -> dict[str, Any]:
        """The fields of `DecoderConfig` that say how a decoder is computed."""
        return {name: getattr(self, name) for name in COMPUTED}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What it learns from.

    Attributes:
      train: a file or the id of a data set on the Hub.
      evaluation: the same for evaluation; None: `held_out` of `train`.
      split: which split of a Hub data set.
      limit: take the first so many rows only.
      streaming: fetch no more of a data set than its first `limit` rows.
      held_out: how many examples of `train` are kept for evaluation, the last ones, where `evaluation` is None.
      tokenizer: "bytes", a folder or the id of a repository on the Hub; None: the model's, or bytes for a fresh model.
      max_prompt: most tokens of a prompt, which loses its beginning.
      max_response: most tokens of a response, which loses its end.
      negatives: so many rejected responses a prompt, borrowed from other prompts where it has fewer; None: as they are.
      threshold: scores above it make a response desirable, for methods that read labels; None: scores are no labels.
      cache: the folder in which encoded data are kept; None: `$MI_ALIGN_CACHE`, or `~/.cache/mi_align` without that;
        "off": none.
      buckets: lengths in tokens to one of which each batch is cut, so that little padding is computed; "powers": those
        of two; None: every batch is as long as the longest example.
      packing: how examples lie in rows: "none", each candidate padded to the longest one of the data; "plain", several
        candidates a row; "shared", several examples a row, each prompt once for all its candidates.
      row_length: places in a row of packed examples; None: as many as the longest of them needs.
      on_bad_row: "error" stops at the first row that cannot be used; "skip" leaves it out, counted and listed.
    """

    train: str
    evaluation: str | None = None
    split: str = "train"
    limit: int | None = None
    streaming: bool = False
    held_out: int = 0
    tokenizer: str | None = None
    max_prompt: int = 512
    max_response: int = 512
    negatives: int | None = None
    threshold: float | None = None
    cache: str | None = None
    buckets: tuple[int, ...] | Literal["powers"] | None = None
    packing: Literal["none", "plain", "shared"] = "none"
    row_length: int | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        """What goes together."""
        if self.streaming and self.limit is None:
            raise ValueError("`streaming` fetches the first `limit` rows, but `limit` is not set. Say how many.")
        if self.row_length is not None and (self.packing == "none" or self.row_length < 1):
            raise ValueError(
                f"`row_length` is {self.row_length} and `packing` {self.packing!r}, but at least 1 place and packed "
                "rows were wanted. Set `packing: shared`, or leave it out."
            )
        if self.packing != "none" and self.buckets is not None:
            raise ValueError("`packing` and `buckets` both do away with padding: set one of them.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """How parameters move.

    Attributes:
      name: of the Optax optimiser.
      rate: the highest learning rate.
      schedule: how it falls to 0 after `warmup`: not at all, on a line, or on half a cosine.
      warmup: the share of all steps in which the rate rises from 0, in [0, 1].
      weight_decay: decoupled; matrices alone decay, not norms and biases.
      clip: the largest norm of the gradient; None: any.
      beta1: of Adam and its kin.
      beta2: of Adam and its kin.
      eps: of Adam and its kin.
    """

    name: Literal["adamw", "lion", "adafactor", "sgd"] = "adamw"
    rate: float = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float | None = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Ranges."""
        checks.number("rate", self.rate, checks.Range(above=0))
        checks.number("warmup", self.warmup, checks.Range(at_least=0, at_most=1, remedy="It is a share of the steps."))
        checks.number("weight_decay", self.weight_decay, checks.Range(at_least=0))
        if self.clip is not None:
            checks.number("clip", self.clip, checks.Range(above=0, remedy="Pass null to clip nothing."))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run.

    Attributes:
      data: what it learns from.
      model: what learns.
      method: a row of the table, `docs/methods.md`, or "sft"; with `on_policy` also "reinforce", "rloo", "ppo", "grpo",
        "dr_grpo", "dapo", "bnpo", "gspo", "cispo".
      hyper: the method's hyper-parameters, such as `beta`.
      on_policy: learn from responses that the policy draws itself, to the prompts of the data; None: from the data's.
      optimiser: how parameters move.
      output: the folder of checkpoints, metrics and the trained model.
      epochs: how often each example is seen; not looked at where `steps` are given.
      steps: how many steps are made.
      batch: examples a step.
      micro_batches: in how many parts, one after the other, a batch is scored, to save memory.
      seed: of fresh parameters and of the order of the data.
      reference: "cached" scores the data once, before training; "live" in each step, and holds a second model.
      follow_every: every so many steps a live reference moves towards the policy; 0: never.
      follow_decay: how much of itself the reference keeps when it moves, in [0, 1).
      log_every: steps between lines of metrics.
      log_to: where metrics go beside `metrics.jsonl`.
      evaluate_every: steps between evaluations; 0: at the end only.
      evaluate_entropy: whether evaluations also tell the policy's entropy, for one more forward pass.
      save_every: steps between checkpoints; 0: at the end only.
      keep: how many of the last checkpoints stay.
      keep_best: how many of the best ones stay beside them; a checkpoint is then made with each evaluation.
      best_by: the metric that says which is best.
      best_is: "lowest" or "highest".
      data_parallel, fsdp, tensor: axes of the mesh of devices; −1: what the others leave.
    """

    data: DataConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    method: str = "dpo"
    hyper: dict[str, float] = dataclasses.field(default_factory=dict)
    on_policy: OnPolicyConfig | None = None
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    output: str = "run"
    epochs: float = 1.0
    steps: int | None = None
    batch: int = 16
    micro_batches: int = 1
    seed: int = 0
    reference: Literal["cached", "live"] = "cached"
    follow_every: int = 0
    follow_decay: float = 0.0
    log_every: int = 1
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    evaluate_every: int = 0
    evaluate_entropy: bool = False
    save_every: int = 0
    keep: int = 2
    keep_best: int = 0
    best_by: str = "eval/loss"
    best_is: Literal["lowest", "highest"] = "lowest"
    data_parallel: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        """Counts, and what goes together."""
        for name in ("batch", "micro_batches", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but at least 1 was wanted.")
        if self.batch % self.micro_batches:
            raise ValueError(
                f"`micro_batches` is {self.micro_batches}, but a divisor of `batch` = {self.batch} was wanted."
            )
        if self.steps is None and not self.epochs > 0:
            raise ValueError(f"`epochs` is {self.epochs}, but a number above 0 was wanted.")
        if self.follow_every and self.reference != "live":
            raise ValueError(
                "`follow_every` moves a live reference, but `reference` is 'cached'. Set `reference: live`."
            )
        if self.on_policy is not None:
            self._check_on_policy(self.on_policy.inner_steps)

    def _check_on_policy(self, inner_steps: int) -> None:
        """What goes together where responses are drawn: a run is left between rollouts only."""
        for name in ("steps", "save_every", *(("evaluate_every",) if self.keep_best else ())):
            if (getattr(self, name) or 0) % inner_steps:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, but a multiple of `on_policy.inner_steps` = {inner_steps} was "
                    "wanted: a checkpoint holds no responses, so that it is made between two rollouts."
                )
        if self.evaluate_entropy:
            raise ValueError("`evaluate_entropy` is set, but a run with `on_policy` tells `entropy` anyway.")
        default = DataConfig(train="")
        for name in ("packing", "buckets", "negatives", "threshold"):
            if getattr(self.data, name) != getattr(default, name):
                raise ValueError(
                    f"`data.{name}` is about responses in the data, which a run with `on_policy` does not read. Leave "
                    "it out."
                )
        if self.keep_best and self.best_by == "eval/loss":
            raise ValueError(
                "`keep_best` looks at 'eval/loss', which a run with `on_policy` does not have. Set "
                "`best_by: eval/reward/mean` and `best_is: highest`."
            )
