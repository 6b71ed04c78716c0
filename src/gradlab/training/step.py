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
from gradlab.bptt.folding import Folded
from gradlab.bptt.form import Form, Step
from gradlab.bptt.parts import Parts, by_name, names_of
from gradlab.bptt.passes import Route, wide
from gradlab.bptt.precision import Products, in_all_digits, settled
from gradlab.bptt.scaling import LOG10_2
from gradlab.bptt.unroll import (
    FOLDS,
    Trace,
    check_route,
    check_segments,
    finite,
    forms_of,
    in_full,
    initial_carries,
    make_taps,
)
from gradlab.cells import stock
from gradlab.model import SequenceModel, moving, per_example_loss
from gradlab.probes.base import (
    CloseProbe,
    GateProbe,
    Probe,
    Seen,
    StepProbe,
    norm,
    stacked,
)
from gradlab.probes.setting import setting_of, supported
from gradlab.regularizers.base import Regularizer
from gradlab.tasks.base import Batch, Task
from gradlab.training.mesh import ONE_DEVICE, DataMesh
from gradlab.training.optimizer import Optimizer, check_rule
from gradlab.variable import Variable


class Values(NamedTuple):
    """The arrays of a model that training changes.

    Attributes:
      params: the parameters, an ``nnx.State``.
      variables: likewise what a forward pass itself changes: counts of random numbers, statistics
        of a batch normalisation, counters. Random keys as plain numbers. None: it changes nothing.
    """

    params: Any
    variables: Any = None


class State(NamedTuple):
    """Everything that a step changes.

    Attributes:
      params: the parameters, as in :class:`Values`.
      opt_state: of clipping and update rule.
      step: () int32, steps done.
      key: JAX random key of the run; step ``s`` draws its batch from ``fold_in(key, s)``.
      alive: () bool; False from the first step whose loss, gradient or parameters were not finite.
        That step and all later ones leave the rest of the state as it is.
      variables: as in :class:`Values`.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    key: jax.Array
    alive: jax.Array
    variables: Any = None

    @property
    def values(self) -> Values:
        """The arrays of the model."""
        return Values(self.params, self.variables)


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


class Pulled(NamedTuple):
    """What one pass over a batch, forward and back, gives.

    Attributes:
      loss: the mean over the batch.
      grads: the direction in which the loss rises most, by parameter; half precision in float32. Of
        a complex parameter it is the conjugate of JAX's gradient.
      changed: the arrays of the model that the forward pass has changed, or None.
    """

    loss: jax.Array
    grads: Any
    changed: Any


class Passed(NamedTuple):
    """What a measured pass saw of a whole batch, of all layers and directions.

    Attributes:
      adjoints: as of :class:`gradlab.probes.base.Seen`.
      folded: the result of each fold, with a leading axis of layers.
      gates: as of :class:`gradlab.probes.base.Seen`; computed only where they are read.
      traces: as of :class:`gradlab.bptt.unroll.Unrolled`.
    """

    adjoints: dict[str, jax.Array]
    folded: list[Folded]
    gates: dict[str, jax.Array]
    traces: Any


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
      segments: of time, as there.
      products: of the cells, as there; close probes and what is held out are seen in float32.

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
        segments: int | None = None,
        products: Products = "float32",
    ):
        check_route(backward, model.layers, "trainer.backward")
        check_segments(segments, task.length, "trainer.segments")
        self.backward: Route = backward
        self.segments = segments
        self.products: Products = products
        self.mesh, self.test_tasks = mesh, dict(test_tasks or {})
        self.moving = moving(model, batch)
        self.hold(model)
        if any(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves(self.first_params)):
            check_rule(optimizer, wide(self.first_params))
        self.names, self.reads = model.layer_names(), model.reads
        self.task, self.optimizer, self.batch = task, optimizer, batch
        self.examples, self.regularizer = min(examples, batch), regularizer
        self.shape = (task.length, batch, model.width)
        self.setting = setting_of(
            model.layers,
            model.width,
            length=task.length,
            clips=optimizer.clips,
            dtype=self.reads,
        )
        self.probes, self.left_out = supported(probes, self.setting, by_preset=probes_by_preset)
        self.variables: dict[str, Variable] = {}
        for probe in self.probes.values():
            self.variables |= probe.variables(self.setting)

    def hold(self, model: SequenceModel) -> None:
        """Take the structure of a model, and its arrays as those before the first step."""
        self.graph, self.first_params, variables, rest = nnx.split(
            model, nnx.Param, self._moves, ...
        )
        arrays = (variables or None, rest)
        self._impls = [_key_impl(leaf) for leaf in jax.tree.leaves(arrays)]
        self.first_variables, self.rest = _as_numbers(arrays)

    @property
    def first(self) -> Values:
        """The arrays of the model before the first step."""
        return Values(self.first_params, self.first_variables)

    def _moves(self, path: Any, _: Any) -> bool:
        return path in self.moving

    def start(self, key: jax.Array) -> State:
        """The state before the first step."""
        params, optimizer = wide(self.first_params), self.optimizer
        opt_state = (optimizer.clip.init(params), optimizer.update.init(params))
        alive, variables = jnp.bool_(True), self.first_variables
        return State(self.first_params, opt_state, jnp.int32(0), key, alive, variables)

    def model(self, values: Values, *, of_device: bool = False) -> SequenceModel:
        """The model with these arrays.

        Args:
          values: such as those of a state.
          of_device: where a batch is split over devices, each draws random numbers of its own.
        """
        own = self.mesh.own_key if of_device and self.moving else _unchanged
        numbers, tree = jax.tree.flatten((values.variables, self.rest))
        arrays = [
            leaf if impl is None else own(jax.random.wrap_key_data(leaf, impl=impl))
            for leaf, impl in zip(numbers, self._impls, strict=True)
        ]
        variables, rest = tree.unflatten(arrays)
        changed = () if variables is None else (variables,)
        return nnx.merge(self.graph, values.params, *changed, rest, copy=True)

    def _changed(self, model: SequenceModel) -> Any:
        """What a forward pass has changed of a model; None if it changes nothing."""
        return _as_numbers(nnx.state(model, self._moves)) if self.moving else None

    def _after_pass(self, values: Values, changed: Any) -> Values:
        """The arrays after a forward pass that has changed so much."""
        if changed is None:
            return values
        params, variables = nnx.split_state(changed, nnx.Param, ...)
        return Values(nnx.merge_state(values.params, params), variables or None)

    def draw(self, state: State, data: Any) -> Batch:
        """The batch of the step that ``state`` is about to make."""
        return self.task.sample(data, jax.random.fold_in(state.key, state.step), self.batch)

    def loss(self, values: Values, batch: Batch, taps: Any) -> tuple[jax.Array, tuple[Any, Any]]:
        """``(mean loss, (traces, what the pass has changed))`` of a batch."""
        model = self.model(values, of_device=True)
        forward = model(
            batch.inputs,
            batch.mask,
            taps,
            self.backward,
            segments=self.segments,
            products=self.products,
        )
        each = per_example_loss(self.task.loss, forward.outputs, batch.targets, batch.weights)
        return jnp.mean(each), (forward.traces, self._changed(model))

    @in_all_digits
    def advance(self, state: State, data: Any, count: jax.Array) -> tuple[State, Report]:
        """``count`` plain steps in one compiled loop; the report holds means over them."""

        def plain(_, carry):
            state, total = carry
            batch = self.draw(state, data)
            state, report, _ = self._update(state, batch, self._gradient(state.values, batch))
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
            state, report, _ = self._update(state, batch, self._gradient(state.values, batch))
            return state, report, {}
        folds = [one for one in probes if isinstance(one, GateProbe)]
        pulled, passed = self._measured_gradient(state.values, batch, folds)
        after, report, (grads, clipped, updates) = self._update(state, batch, pulled)
        seen = Seen(
            adjoints=passed.adjoints,
            mask=self._masks(batch.mask),
            gates=passed.gates,
            retention=passed.gates.get(self.setting.retention or ""),
            params=by_name(state.params),
            grads=by_name(grads),
            clipped=by_name(clipped),
            updates=by_name(updates),
            hidden=self.setting.hidden_of(passed.adjoints),
        )
        measured: dict[str, jax.Array] = {}
        own = iter(passed.folded)
        for one in probes:
            gates = isinstance(one, GateProbe)
            measured |= one.measure(next(own), seen.mask) if gates else one(seen)
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
            state.values,
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
        values: Values,
        batch: Batch,
        examples: int | None,
        *,
        backward: Route = "full",
        removed: Callable[[], Mapping[str, jax.Array]] | None = None,
    ) -> Closeup:
        """A close look at the first ``examples`` (None: all) of a batch.

        A penalty looks at the true gradient, whatever the training makes of it.
        """
        model, few = self.model(values), slice(examples)
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
        """Loss, gradients and log10 adjoints of the step ``state`` is about to make.

        And whether its states are finite, as of :func:`gradlab.bptt.unroll.finite`.

        For the diagnosis of a step that was not finite.
        """
        batch = self.draw(state, data)
        pulled, passed = self._measured_gradient(state.values, batch)
        layers = self.model(state.values).layers
        forms = forms_of(layers, self.shape, self.reads)
        states = finite(layers, forms, passed.traces, batch.mask, self.products)
        return pulled.loss, by_name(pulled.grads), passed.adjoints, states

    def _in_full(self, model: SequenceModel, traces: Any, mask: jax.Array | None) -> Any:
        """The traces with every state, made again where segments left them out."""
        if self.segments is None:
            return traces
        forms = forms_of(model.layers, self.shape, self.reads)
        return in_full(model.layers, forms, traces, mask, self.products)

    def _gradient(self, values: Values, batch: Batch) -> Pulled:
        """The mean loss of a batch and its gradient."""

        def of(values: Values, batch: Batch) -> tuple[Pulled, tuple[()]]:
            def loss(params: Any) -> Any:
                return self.loss(Values(params, values.variables), batch, None)

            (mean, (_, changed)), grads = jax.value_and_grad(loss, has_aux=True)(values.params)
            return Pulled(mean, _descent(grads), changed), ()

        return self.mesh.over_batch(of)(values, batch)[0]

    def _measured_gradient(
        self, values: Values, batch: Batch, folds: Sequence[GateProbe] = ()
    ) -> tuple[Pulled, Passed]:
        """The same, with what was seen on the way."""
        layers = self.model(values).layers

        def of(values: Values, batch: Batch) -> tuple[Any, Any]:
            def loss(params: Any, taps: Any) -> Any:
                return self.loss(Values(params, values.variables), batch, taps)

            shape = (self.shape[0], batch.inputs.shape[1], self.shape[2])
            grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
            (mean, (traces, changed)), (grads, found) = grad(
                values.params, make_taps(layers, shape, self.reads, folds=folds)
            )
            norms = stacked([own for layer in found for own in layer])
            rows, sums = [], []
            for tap in norms.pop(FOLDS, ()):
                rows.append(tap.folded.rows)
                sums.append(tap.folded.sums)
            model = self.model(values)
            gates = self._gates(model, self._in_full(model, traces, batch.mask))
            return (Pulled(mean, _descent(grads), changed), sums), (traces, norms, rows, gates)

        each = (self._rows(layers), 2, 2, 2)
        (pulled, sums), (traces, *seen) = self.mesh.over_batch(of, each)(values, batch)
        norms, rows, gates = self.mesh.whole(seen)
        # The mean over the rows of a device divides every example's own adjoint by their number.
        shift = jnp.log2(jnp.float32(self.batch // self.mesh.devices))
        adjoints = {name: (norms[name] + shift) * LOG10_2 for name in self.setting.states}
        totals = jax.tree.map(lambda mean: mean * self.mesh.devices, sums)
        folded = [Folded(*own) for own in zip(rows, totals, strict=True)]
        return pulled, Passed(adjoints, folded, gates, traces)

    def _rows(self, layers: Any) -> Any:
        """Where the examples are in each part of the traces; -1: in none."""

        def trace(carry: Any, form: Form) -> Trace:
            tree = jax.tree.structure(carry)
            before = tree.unflatten([1 if batched else -1 for batched in form.batched])
            final = jax.tree.map(lambda axis: max(axis - 1, -1), before)
            inputs: Any = 1
            return Trace(before, inputs, final, variables=-1, final_variables=-1)

        begun = (begin(layers, self.shape, self.reads) for begin in (initial_carries, forms_of))
        return tuple(tuple(map(trace, *layer)) for layer in zip(*begun, strict=True))

    def _removed(self, state: State, batch: Batch) -> Mapping[str, jax.Array]:
        """What clipping takes away from the gradient of a whole batch, by name, as JAX has it."""
        grads, _ = self._regularized(state, batch, self._gradient(state.values, batch).grads)
        clip = self.optimizer.clip.update
        clipped, _ = clip(grads, state.opt_state[0], wide(state.params))
        return by_name(_descent(jax.tree.map(jnp.subtract, grads, clipped)))

    def _regularized(self, state: State, batch: Batch, grads: Any) -> tuple[Any, jax.Array]:
        """The gradient of task and penalty together, and the penalty."""
        regularizer = self.regularizer
        if regularizer is None:
            return grads, jnp.float32(0)

        seen = self.mesh.whole(batch)

        def penalty(params: Any) -> jax.Array:
            values = Values(params, state.variables)
            return regularizer.penalty(self.closeup(values, seen, regularizer.examples))

        def both(params: Any) -> tuple[jax.Array, Any]:
            value, grads = jax.value_and_grad(penalty)(params)
            return value, _descent(grads)

        def neither(params: Any) -> tuple[jax.Array, Any]:
            return jnp.float32(0), jax.tree.map(jnp.zeros_like, wide(params))

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

    def _update(self, state: State, batch: Batch, pulled: Pulled):
        clip, rule = self.optimizer.clip.update, self.optimizer.update.update
        grads, penalty = self._regularized(state, batch, pulled.grads)
        before, variables = self._after_pass(state.values, pulled.changed)
        full = wide(before)
        # Settled, so that what the probes read of it changes no bit of the parameters.
        zero = jnp.minimum(state.step, 0)
        clipped, clip_state = settled(clip(grads, state.opt_state[0], full), zero)
        with jax.numpy_dtype_promotion("standard"):  # Adam's own code mixes types
            updates, rule_state = lax.optimization_barrier(rule(clipped, state.opt_state[1], full))
        params = _as_before(optax.apply_updates(full, updates), before)
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(clipped), strict=True)
        changed = jnp.stack([jnp.any(before != after) for before, after in pairs])
        report = Report(
            loss=pulled.loss,
            grad_norm=norm(jnp.stack([norm(leaf) for leaf in jax.tree.leaves(grads)])),
            clipped=jnp.any(changed).astype(jnp.float32),
            penalty=penalty,
        )
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((params, report))]
        alive = state.alive & jnp.all(jnp.stack(finite))
        optimizer, step = (clip_state, rule_state), state.step + 1
        moved = State(params, optimizer, step, state.key, alive, variables)
        kept = state._replace(alive=alive)
        after = jax.tree.map(lambda new, old: jnp.where(alive, new, old), moved, kept)
        return after, report, (grads, clipped, updates)

    def _masks(self, mask: jax.Array | None) -> jax.Array:
        if mask is None:
            return jnp.ones((len(self.names), *self.shape[:2]), bool)
        backward = [name.endswith("backward") for name in self.names]
        return jnp.stack([mask[::-1] if flip else mask for flip in backward])

    def _gates(
        self, model: SequenceModel, traces: Sequence[Sequence[Trace]]
    ) -> dict[str, jax.Array]:
        """The gates over time, ``(L, T, B, H)`` by name, for a probe that reads them whole."""
        if not self.setting.gates:
            return {}
        forms = forms_of(model.layers, self.shape, self.reads)
        places = [
            (cell, form, trace)
            for layer, own, went in zip(model.layers, forms, traces, strict=True)
            for cell, form, trace in zip(layer, own, went, strict=True)
        ]
        found: list[Any] = [_gates_over_time(*place) for place in places]
        return {
            name: jnp.stack([wide(getattr(one, name)) for one in found])
            for name in self.setting.gates
        }


def _gates_over_time(cell: nnx.RNNCellBase, form: Form, trace: Trace) -> Any:
    """The gates at every step, ``(T, B, H)`` each, with the Variables that the step began with."""
    if trace.variables is None:
        return stock.gates(cell, trace.before, trace.inputs)
    step = Step(Parts.of(cell), form)

    def at(variables: Any, before: Any, x: jax.Array) -> Any:
        return stock.gates(step.module(variables), before, x)

    return jax.vmap(at)(trace.variables, trace.before, trace.inputs)


def _descent(grads: Any) -> Any:
    """The direction of steepest ascent, in at least float32, of JAX's gradients; or back again."""
    return jax.tree.map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, wide(grads))


def _as_before(new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: n.astype(o.dtype), new, old)


# Random keys among a model's arrays are kept as numbers, which can be stacked, sent and saved.


def _key_impl(leaf: jax.Array) -> Any:
    """The kind of a random key; None of what is none."""
    return jax.random.key_impl(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else None


def _as_numbers(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf if _key_impl(leaf) is None else jax.random.key_data(leaf), tree
    )


def _unchanged(key: jax.Array) -> jax.Array:
    return key
