"""Removing channels: what is coupled, what to keep, and the smaller network."""

from tfcompress.surgery.channel_graph import ChannelGraph
from tfcompress.surgery.plan import PruningPlan
from tfcompress.surgery.prune import Pruned, plan_pruning, prune_channels
from tfcompress.surgery.rebuild import apply_plan
from tfcompress.surgery.recalibration import recalibrate
from tfcompress.surgery.rules import register_rule

__all__ = [
    "ChannelGraph",
    "Pruned",
    "PruningPlan",
    "apply_plan",
    "plan_pruning",
    "prune_channels",
    "recalibrate",
    "register_rule",
]
