"""Every reason why a layer stays dense, in the words that tables, plans and manifests show.

Five places decide, in this order, and the first reason that applies is the one that is told:

1. `pelacli.lowrank.layer`: the layer's kind can't be factorised (its forward, a 1×1 convolution, a
   fused projection, fused experts).
2. `pelacli.lowrank.find`: the layer's place forbids it (attention's fused function, a weight that
   is tied or shared), or else the user's selection (not included, output head, excluded).
3. `pelacli.artefact.description`: the model does more with the weight than apply it, which a trial
   run shows.
4. `pelacli.ranks.planner`: the layer is pinned, or no rank is open to it (never applied,
   break-even, not faster), or its policy leaves it dense (break-even, not worth its time).
5. `pelacli.ranks.plan` and `pelacli.ranks.planner.measure`, for plans from a file: the plan says so
   without a reason, or does not name the layer.
"""

from __future__ import annotations

# 1. The kind of layer
CONVOLUTION = "1×1 convolution"
FUSED_IN_PROJ = "fused in_proj"
FUSED_EXPERTS = "experts fused in one parameter"


def own_forward(class_name: str) -> str:
    """A subclass of ``nn.Linear`` that computes something else than the product with its weight."""
    return f"{class_name} has a forward of its own"


# 2. The place in the model, and the user's selection
IN_ATTENTION = "inside nn.MultiheadAttention"
SHARED = "its weight is shared"  # of the first owner; later ones name it, see below
NOT_INCLUDED = "not included"
OUTPUT_HEAD = "output head"
EXCLUDED = "excluded"


def tied_to(embedding: str) -> str:
    """The weight is an embedding's table too."""
    return f"tied to {embedding}"


def shares_weight_with(layer: str) -> str:
    """The weight belongs to an earlier layer too."""
    return f"shares its weight with {layer}"


# 3. What the model does with the weight


def weight_is_read(function: str) -> str:
    """The model reads the weight by this function: factors would be multiplied out each time."""
    return f"its weight is read ({function})"


# 4. The budget
PINNED_DENSE = "pinned dense"
NEVER_APPLIED = "never applied"  # so with a budget in FLOPs it costs nothing
BREAK_EVEN = "break-even"  # it keeps more for its cost than any lower rank that is open
# … and with a budget in latency
NOT_FASTER = "no rank is faster than dense"
NOT_WORTH_ITS_TIME = "what a rank saves in time is better saved elsewhere"

# 5. A plan from a file
PLAN_SAYS_SO = "the plan says so"
NOT_IN_PLAN = "not in the plan"
