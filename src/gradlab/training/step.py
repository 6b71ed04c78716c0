"""One training step, plain or probed, as pure functions of arrays.

Both kinds run the same arithmetic on the parameters; the probed one also hands out what the probes
measure. Nothing here knows when to measure (:mod:`gradlab.training.loop`) or where it goes
(:mod:`gradlab.record`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from gradlab.bptt.closeup import Closeup
from gradlab.bptt.parts import by_name, names_of
from gradlab.bptt.passes import Route
from gradlab.bptt.precision import in_all_digits
from gradlab.bptt.scaling import LOG10_2
from gradlab.bptt.unroll import Trace, check_route, make_taps
from gradlab.cells import stock
from gradlab.model import SequenceModel, per_example_loss
from gradlab.probes.base import CloseProbe, Probe, Seen, StepProbe, norm
from gradlab.probes.setting import setting_of, supported
from gradlab.regularizers.base import Regularizer
from gradlab.tasks.base import Batch, Task
from gradlab.training.mesh import ONE_DEVICE, DataMesh
from gradlab.training.optimizer import Optimizer
from gradlab.variable import Variable


class State(NamedTuple):
    """Everything that a step changes.

    Attributes:
      params: the parameters, an ``nnx.State``.
      opt_state: of clipping and update rule.
      step: () int32, steps done.
      key: JAX random key of the run; step ``s`` draws its batch from ``fold_in(key, s)``.
      alive: () bool; False from the first step whose loss, gradient or parameters were not finite.
        That step and all later ones leave the rest of the state as it is.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    key: jax.Array
    alive: jax.Array


class Report(NamedTuple):
    """What every step reports, () each.

    Attributes:
      loss: the mean loss of its batch.
      grad_norm: the norm of the gradient before clipping.
      clipped: 1 if clipping changed the gradient, else 0.
      penalty: the regularizer's, before its weight; 0 without one.
    """

    loss: jax.Array
    grad_norm: jax.Array
    clipped: jax.Array
    penalty: jax.Array


class Steps:
    """The step functions of one model, task, optimizer and set of probes.

    Args:
      model: gives the structure and the first parameters.
      task: where batches come from.
      optimizer: clipping and update rule.
      probes: name -> probe.
      batch: ``B``.
      examples: how many examples of the batch the close probes look at, at most ``B``.
      regularizer: a penalty beside the task's loss, or None.
      mesh: the devices that each batch is split over.
      test_tasks: the task at each further length that it is tested at.
      probes_by_preset: whether a preset chose the probes; then those that cannot measure this model
        are left out.
      backward: what passes back from each timestep, as for :func:`gradlab.bptt.unroll.unroll`.

    Attributes:
      left_out: name -> reason, of the probes that were left out.

    Raises:
      BadInput: for a probe that was asked for by name and cannot measure this model, or a way back
        that its cells do not have.
    """

    def __init__(
        self,
        model: SequenceModel,
        task: Task,
        optimizer: Optimizer,
        probes: Mapping[str, Probe],
        batch: int,
        *,
        examples: int = 4,
        regularizer: Regularizer | None = None,
        mesh: DataMesh = ONE_DEVICE,
        test_tasks: Mapping[int, Task] | None = None,
        probes_by_preset: bool = False,
        backward: Route = "full",
    ):
        check_route(backward, model.layers, "trainer.backward")
        self.backward: Route = backward
        self.mesh, self.test_tasks = mesh, dict(test_tasks or {})
        self.graph, self.first_params, self.rest = nnx.split(model, nnx.Param, ...)
        self.names = model.layer_names()
        self.task, self.optimizer, self.batch = task, optimizer, batch
        self.examples, self.regularizer = min(examples, batch), regularizer
        self.shape = (task.length, batch, model.width)
        self.setting = setting_of(
            model.layers, model.width, length=task.length, clips=optimizer.clips
        )
        self.probes, self.left_out = supported(probes, self.setting, by_preset=probes_by_preset)
        self.variables: dict[str, Variable] = {}
        for probe in self.probes.values():
            self.variables |= probe.variables(self.setting)

    def start(self, key: jax.Array) -> State:
        """The state before the first step."""
        params = self.first_params
        optimizer = self.optimizer
        opt_state = (optimizer.clip.init(params), optimizer.update.init(params))
        return State(params, opt_state, jnp.int32(0), key, jnp.bool_(True))

    def model(self, params: Any) -> SequenceModel:
        """The model with these parameters."""
        return nnx.merge(self.graph, params, self.rest, copy=True)

    def draw(self, state: State, data: Any) -> Batch:
        """The batch of the step that ``state`` is about to make."""
        return self.task.sample(data, jax.random.fold_in(state.key, state.step), self.batch)

    def loss(self, params: Any, batch: Batch, taps: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        """``(mean loss, traces)`` of a batch."""
        forward = self.model(params)(batch.inputs, batch.mask, taps, self.backward)
        each = per_example_loss(self.task.loss, forward.outputs, batch.targets, batch.weights)
        return jnp.mean(each), forward.traces

    @in_all_digits
    def advance(self, state: State, data: Any, count: jax.Array) -> tuple[State, Report]:
        """``count`` plain steps in one compiled loop; the report holds means over them."""

        def plain(_, carry):
            state, total = carry
            batch = self.draw(state, data)
            loss, grads = self._gradient(state.params, batch)
            state, report, _ = self._update(state, batch, loss, grads)
            return state, jax.tree.map(jnp.add, total, report)

        zero = Report(*(jnp.float32(0) for _ in Report._fields))
        state, total = lax.fori_loop(0, count, plain, (state, zero))
        return state, jax.tree.map(lambda x: x / jnp.asarray(count, x.dtype), total)

    @in_all_digits
    def probe(self, state: State, data: Any) -> tuple[State, Report, dict[str, jax.Array]]:
        """One step with the probes' measurements, of the parameters before its update."""
        batch = self.draw(state, data)
        probes = [one for one in self.probes.values() if isinstance(one, StepProbe)]
        if not probes:
            loss, grads = self._gradient(state.params, batch)
            state, report, _ = self._update(state, batch, loss, grads)
            return state, report, {}
        loss, traces, grads, norms = self._measured_gradient(state.params, batch)
        after, report, (grads, clipped, updates) = self._update(state, batch, loss, grads)
        gates, retention = self._gates(self.model(state.params), traces)
        seen = Seen(
            adjoints=self._adjoints(norms),
            mask=self._masks(batch.mask),
            gates=gates,
            retention=retention,
            params=by_name(state.params),
            grads=by_name(grads),
            clipped=by_name(clipped),
            updates=by_name(updates),
            hidden=self.setting.hidden_of(self._adjoints(norms)),
        )
        measured: dict[str, jax.Array] = {}
        for one in probes:
            measured |= one(seen)
        return after, report, measured

    @property
    def looks_closely(self) -> bool:
        """Whether there is anything for :meth:`measure` to measure."""
        return any(isinstance(one, CloseProbe) for one in self.probes.values())

    @in_all_digits
    def measure(self, state: State, data: Any) -> dict[str, jax.Array]:
        """The close probes' measurements of the step ``state`` is about to make."""
        batch = self.mesh.whole(self.draw(state, data))
        closeup = self.closeup(
            state.params,
            batch,
            self.examples,
            backward=self.backward,
            removed=lambda: self._removed(state, batch),
        )
        assert list(closeup.params) == names_of(state.params)
        measured: dict[str, jax.Array] = {}
        for one in self.probes.values():
            if isinstance(one, CloseProbe):
                measured |= one(closeup)
        return measured

    def closeup(
        self,
        params: Any,
        batch: Batch,
        examples: int | None,
        *,
        backward: Route = "full",
        removed: Callable[[], Mapping[str, jax.Array]] | None = None,
    ) -> Closeup:
        """A close look at the first ``examples`` (None: all) of a batch.

        A penalty looks at the true gradient, whatever the training makes of it.
        """
        model, few = self.model(params), slice(examples)
        every = self.task.readout == "every"
        targets = batch.targets[:, few] if every else batch.targets[few]
        weights = None if batch.weights is None else batch.weights[:, few]
        return Closeup(
            model.layers,
            model.encode(batch.inputs[:, few]),
            lambda outputs: per_example_loss(self.task.loss, outputs, targets, weights),
            readout=model.readout,
            every=every,
            mask=None if batch.mask is None else batch.mask[:, few],
            names=self.names,
            batch=self.batch,
            start=model.start(),
            learns_start=model.learns_start,
            backward=backward,
            removed=removed if self.optimizer.clips else None,
        )

    @in_all_digits
    def inspect(self, state: State, data: Any) -> tuple[Any, Any, Any, Any]:
        """Loss, gradients, log10 adjoints and traces of the step ``state`` is about to make.

        For the diagnosis of a step that was not finite.
        """
        loss, traces, grads, norms = self._measured_gradient(state.params, self.draw(state, data))
        return loss, by_name(grads), self._adjoints(norms), traces

    def _gradient(self, params: Any, batch: Batch) -> tuple[jax.Array, Any]:
        """The mean loss of a batch and its gradient."""

        def of(params: Any, batch: Batch) -> tuple[Any, tuple[()]]:
            return jax.value_and_grad(lambda p: self.loss(p, batch, None)[0])(params), ()

        return self.mesh.over_batch(of)(params, batch)[0]

    def _measured_gradient(self, params: Any, batch: Batch):
        layers = self.model(params).layers

        def of(params: Any, batch: Batch) -> tuple[Any, Any]:
            shape = (self.shape[0], batch.inputs.shape[1], self.shape[2])
            grad = jax.value_and_grad(self.loss, argnums=(0, 2), has_aux=True)
            (loss, traces), (grads, norms) = grad(params, batch, make_taps(layers, shape))
            return (loss, grads), (traces, norms)

        where: Any = Trace(before=1, inputs=1, final=0)  # pyright: ignore[reportArgumentType]
        rows = (tuple((where,) * len(layer) for layer in layers), 1)
        (loss, grads), (traces, norms) = self.mesh.over_batch(of, rows)(params, batch)
        return loss, traces, grads, norms

    def _removed(self, state: State, batch: Batch) -> Mapping[str, jax.Array]:
        """What clipping takes away from the gradient of a whole batch, by name."""
        _, grads = self._gradient(state.params, batch)
        grads, _ = self._regularized(state, batch, grads)
        clipped, _ = self.optimizer.clip.update(grads, state.opt_state[0], state.params)
        return by_name(jax.tree.map(jnp.subtract, grads, clipped))

    def _regularized(self, state: State, batch: Batch, grads: Any) -> tuple[Any, jax.Array]:
        """The gradient of task and penalty together, and the penalty."""
        regularizer = self.regularizer
        if regularizer is None:
            return grads, jnp.float32(0)

        seen = self.mesh.whole(batch)

        def penalty(params: Any) -> jax.Array:
            return regularizer.penalty(self.closeup(params, seen, regularizer.examples))

        def both(params: Any) -> tuple[jax.Array, Any]:
            return jax.value_and_grad(penalty)(params)

        def neither(params: Any) -> tuple[jax.Array, Any]:
            return jnp.float32(0), jax.tree.map(jnp.zeros_like, params)

        until = regularizer.until
        counts = jnp.bool_(True) if until is None else state.step < until
        value, own = lax.cond(counts, both, neither, state.params)
        with_task = state.step >= regularizer.alone
        grads = jax.tree.map(
            lambda task, extra: jnp.where(with_task, task, 0) + regularizer.weight * extra,
            grads,
            own,
        )
        return grads, value

    def _update(self, state: State, batch: Batch, loss: jax.Array, grads: Any):
        clip, rule = self.optimizer.clip.update, self.optimizer.update.update
        grads, penalty = self._regularized(state, batch, grads)
        clipped, clip_state = clip(grads, state.opt_state[0], state.params)
        with jax.numpy_dtype_promotion("standard"):  # Adam's own code mixes types
            updates, rule_state = rule(clipped, state.opt_state[1], state.params)
        params = optax.apply_updates(state.params, updates)
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(clipped), strict=True)
        changed = jnp.stack([jnp.any(before != after) for before, after in pairs])
        report = Report(
            loss=loss,
            grad_norm=norm(jnp.stack([norm(leaf) for leaf in jax.tree.leaves(grads)])),
            clipped=jnp.any(changed).astype(jnp.float32),
            penalty=penalty,
        )
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((params, report))]
        alive = state.alive & jnp.all(jnp.stack(finite))
        moved = State(params, (clip_state, rule_state), state.step + 1, state.key, alive)
        kept = state._replace(alive=alive)
        after = jax.tree.map(lambda new, old: jnp.where(alive, new, old), moved, kept)
        return after, report, (grads, clipped, updates)

    def _adjoints(self, norms: Any) -> dict[str, jax.Array]:
        # The mean over the rows of a device divides every example's own adjoint by their number.
        own = [direction for layer in norms for direction in layer]
        shift = jnp.log2(jnp.float32(self.batch // self.mesh.devices))
        return {
            name: (self.mesh.whole(jnp.stack([one[name] for one in own])) + shift) * LOG10_2
            for name in self.setting.states
        }

    def _masks(self, mask: jax.Array | None) -> jax.Array:
        if mask is None:
            return jnp.ones((len(self.names), *self.shape[:2]), bool)
        backward = [name.endswith("backward") for name in self.names]
        return jnp.stack([mask[::-1] if flip else mask for flip in backward])

    def _gates(self, model: SequenceModel, traces: Sequence[Sequence[Trace]]):
        if not self.setting.gates:
            return {}, None
        flat = [trace for layer in traces for trace in layer]
        found: list[Any] = [
            stock.gates(cell, trace.before, trace.inputs)
            for cell, trace in zip(model.cells(), flat, strict=True)
        ]
        gates = {
            name: jnp.stack([getattr(one, name) for one in found]) for name in self.setting.gates
        }
        return gates, gates.get(self.setting.retention or "")
