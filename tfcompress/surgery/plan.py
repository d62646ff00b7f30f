"""What a pruning keeps, as data: before, after or without building the smaller network."""

import json
from dataclasses import dataclass

import numpy as np

from tfcompress.profiling import cost_table, removed, table
from tfcompress.surgery.channel_graph import Cost


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Which output channels of every producer are kept, and what that costs.

    Attributes:
        kept: {layer name: indices of the kept output channels}, for every layer that makes channels.
        widths: {layer name: number of output channels before}.
        before, after: `Cost` (parameters, MACs, estimated int8 bytes) of the network.
        skip: layer names that the plan was told to keep whole.
        criterion: name of the criterion, or "" if the channels were chosen otherwise.
    """

    kept: dict
    widths: dict
    before: Cost
    after: Cost
    skip: tuple = ()
    criterion: str = ""

    @classmethod
    def of(cls, graph, alive, criterion=""):
        """The plan that keeps these classes of a `ChannelGraph`."""
        widths = {name: len(producer.ids) for name, producer in graph.producers.items()}
        before = graph.cost(np.ones_like(alive))
        return cls(graph.kept(alive), widths, before, graph.cost(alive), graph.skip, criterion)

    @property
    def params_reduction(self):
        """Fraction of the parameters removed."""
        return removed(self.before.params, self.after.params)

    @property
    def macs_reduction(self):
        """Fraction of the MACs removed, or None if the spatial size is open."""
        return None if self.before.macs is None else removed(self.before.macs, self.after.macs)

    def then(self, other):
        """The plan that does this plan and then another one, made for the network that this plan results in.

        Raises:
            ValueError: if the other plan is for another network.
        """
        result = {name: len(indices) for name, indices in self.kept.items()}
        _check_widths(other.widths, result, "The second plan is for another network than the first results in")
        kept = {name: indices[other.kept[name]] for name, indices in self.kept.items()}
        skip = tuple(dict.fromkeys((*self.skip, *other.skip)))
        return PruningPlan(kept, self.widths, self.before, other.after, skip, other.criterion)

    def to_json(self):
        """The plan as a JSON string."""
        return json.dumps(
            {
                "kept": {name: indices.tolist() for name, indices in self.kept.items()},
                "widths": self.widths,
                "before": self.before._asdict(),
                "after": self.after._asdict(),
                "skip": list(self.skip),
                "criterion": self.criterion,
            }
        )

    @classmethod
    def from_json(cls, text):
        """The plan from `to_json`'s string.

        Raises:
            ValueError: it is no plan, or a damaged one.
        """
        try:
            data = json.loads(text)
            kept = {name: np.array(indices, None if indices else int) for name, indices in data["kept"].items()}
            before, after = Cost(**data["before"]), Cost(**data["after"])
            plan = cls(kept, data["widths"], before, after, tuple(data["skip"]), data["criterion"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"This is no pruning plan as `to_json` writes it: {error!r}") from error
        _check_kept(plan)
        return plan

    def __str__(self):
        rows = []
        for name, width in self.widths.items():
            kept = len(self.kept[name])
            rows.append((name, "" if kept < width else "whole", str(width), str(kept), f"{1 - kept / width:.1%}"))
        lines = [table(("layer", "", "channels", "kept", "removed"), rows), ""]
        costs = [
            ("parameters", self.before.params, self.after.params),
            ("MACs", self.before.macs, self.after.macs),
            ("float32 bytes", 4 * self.before.params, 4 * self.after.params),
            ("int8 bytes", self.before.int8_bytes, self.after.int8_bytes),
        ]
        return "\n".join([*lines, cost_table("predicted", costs)])


def classes_kept(graph, plan):
    """The classes of a graph that a plan keeps, after checking that the plan is for this network.

    Returns:
        (classes,) array of bool.

    Raises:
        ValueError: if the plan is for another network, or parts coupled channels.
    """
    _check_kept(plan)
    widths = {name: len(producer.ids) for name, producer in graph.producers.items()}
    _check_widths(plan.widths, widths, f"The plan is for another network than {graph.model.name!r}")
    params = graph.cost(np.ones(len(graph.frozen), bool)).params
    if plan.before.params != params:
        raise ValueError(
            f"The plan is for another network than {graph.model.name!r}: one with {plan.before.params:,} parameters, "
            f"not {params:,}."
        )
    alive = graph.alive(plan.kept)
    for name, indices in graph.kept(alive).items():
        producer = graph.producers[name]
        if not np.array_equal(indices, plan.kept[name]) or not alive[graph.class_of[producer.ids]].any():
            raise ValueError(f"The plan parts channels that are coupled, or empties a layer: see layer {name!r}.")
    for label in graph.labels.values():
        if any(len(ids) and not alive[graph.class_of[ids]].any() for ids in label.ids.values()):
            raise ValueError(f"The plan leaves layer {label.layer!r} no channel to read.")
    if (graph.frozen & ~alive).any():
        raise ValueError("The plan removes channels that must be kept whole, such as outputs of the model.")
    params = graph.cost(alive).params
    if plan.after.params != params:
        raise ValueError(
            f"The plan is damaged: what it keeps has {params:,} parameters, it says {plan.after.params:,}."
        )
    return alive


def _check_kept(plan):
    """Refuses a plan whose kept channels are no channels of its layers."""
    for name in {**plan.widths, **plan.kept}:
        width, kept = plan.widths.get(name), plan.kept.get(name)
        known = width is not None and kept is not None and np.issubdtype(kept.dtype, np.integer)
        if not known or not np.isin(kept, np.arange(width)).all() or not np.all(np.diff(kept) > 0):
            raise ValueError(
                f"The plan is damaged: of the {width} channels of layer {name!r} it keeps "
                f"{None if kept is None else kept.tolist()}."
            )


def _check_widths(planned, found, message):
    for name in {**planned, **found}:
        if planned.get(name) != found.get(name):
            raise ValueError(
                f"{message}: layer {name!r} has {found.get(name, 'no')} output channels, the plan expects "
                f"{planned.get(name, 'none')}."
            )
