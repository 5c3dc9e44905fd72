"""Critics for real-valued x and y, in Flax NNX: every x against every y, `[N, M]`, for estimating mutual information.

    critic          T(x, y)                       cost of N × M scores
    Separable       f(x)·g(y)                     N + M networks, one product
    Bilinear        xᵀ W y                        one product
    Concatenated    h([x, y])                     N · M networks, but for their first layer

Pairs that belong together are on the diagonal of `critic(x, y)`, which is what bounds on mutual information take. The
modules are definitions; train their state with `nnx.split`, `nnx.merge` and plain JAX.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

__all__ = ["Bilinear", "Concatenated", "Separable"]


class _Layers(nnx.Module):
    """Linear layers with rectifiers between them."""

    def __init__(self, sizes: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in itertools.pairwise(sizes)])

    def __call__(self, x: Array) -> Array:
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class Separable(nnx.Module):
    """f(x)·g(y) with two networks of one hidden layer: cheap, and a score matrix of rank at most `features`."""

    def __init__(self, x_size: int, y_size: int, *, width: int = 256, features: int = 32, rngs: nnx.Rngs) -> None:
        """Networks x_size → width → features and y_size → width → features."""
        self.f = _Layers((x_size, width, features), rngs=rngs)
        self.g = _Layers((y_size, width, features), rngs=rngs)

    def __call__(self, x: Float[Array, "N x_size"], y: Float[Array, "M y_size"]) -> Float[Array, "N M"]:
        """All scores."""
        return jnp.einsum("nd,md->nm", self.f(x), self.g(y), precision=jax.lax.Precision.HIGHEST)


class Bilinear(nnx.Module):
    """xᵀ W y: the part of a Gaussian pair's log density ratio that depends on both."""

    def __init__(self, x_size: int, y_size: int, *, rngs: nnx.Rngs) -> None:
        """W is `[x_size, y_size]`."""
        self.weight = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (x_size, y_size), jnp.float32))

    def __call__(self, x: Float[Array, "N x_size"], y: Float[Array, "M y_size"]) -> Float[Array, "N M"]:
        """All scores."""
        return jnp.einsum("ni,ij,mj->nm", x, self.weight[...], y, precision=jax.lax.Precision.HIGHEST)


class Concatenated(nnx.Module):
    """h([x, y]) with one network of two hidden layers: any function of the two together.

    The first layer is linear in [x, y] and hence a sum over x and y: it is computed N + M times, and the concatenated
    inputs, `[N, M, x_size + y_size]`, are never made.
    """

    def __init__(self, x_size: int, y_size: int, *, width: int = 256, rngs: nnx.Rngs) -> None:
        """A network (x_size + y_size) → width → width → 1."""
        self.of_x = nnx.Linear(x_size, width, rngs=rngs)
        self.of_y = nnx.Linear(y_size, width, use_bias=False, rngs=rngs)
        self.rest = _Layers((width, width, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "N x_size"], y: Float[Array, "M y_size"]) -> Float[Array, "N M"]:
        """All scores."""
        hidden = self.of_x(x)[:, None, :] + self.of_y(y)[None, :, :]
        return self.rest(jax.nn.relu(hidden))[..., 0]
