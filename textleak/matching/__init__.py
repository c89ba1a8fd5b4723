"""The matching engine: K candidates compared with a shared gradient at once, and optimized.

It is given a network, a differentiable model function, leaves (dummy inputs, label logits) and a target; it
doesn't know what the leaves mean, be it text or images, and imports torch and nothing above it.

- rules.py: how a layer's input and output gradient make its parameters' gradients; `register_rule` adds one.
- factored.py: the candidates' gradients as factors, by hooks (hooks.py) and one call of autograd.
- target.py: the shared gradient, factored once.  moments.py: ‖g'‖², ⟨g', g⟩, ‖g' − g‖₁ from both, those of most
  tensors together (plan.py), of the others one by one (single.py).
- kernels.py: a network's usual operations with cheap second derivatives, in place of torch's own (replaced.py).
  linear.py: products by a constant weight. batch_norm.py and convolution.py: the same for networks that read pictures.
- objectives.py: one distance from the moments.  matcher.py: all of it in one call, in chunks; calls that come again
  are replayed as a list of kernels (recorded.py) in memory laid out once (replay.py), products added where their sums
  lie (added_products.py).
- optimizers.py: Adam, asked for points and told their worth; lbfgs.py: L-BFGS.  policies.py: patience and races, around
  them. crossing.py: L-BFGS from several starts, of which parts are exchanged.
- pool.py: runs on several gradients that share their calls of the network (coroutine.py).
- rounding.py: how far the same number may be apart where it was computed in two ways.
- driver.py: the one loop, its limits and its ending.
- discrete.py: search over sequences of symbols.
- bench.py: factored against formed gradients, and against what the machine can do (limit.py).
"""

from textleak.matching.bench import BenchRow, Candidates, benchmark
from textleak.matching.coroutine import Spent
from textleak.matching.crossing import Crossing
from textleak.matching.driver import (
    Ending,
    Iterate,
    Limits,
    ObjectiveFunction,
    Project,
    Turns,
    minimize,
    minimize_in_turns,
)
from textleak.matching.factored import Capture, Leaves, ModelFunction
from textleak.matching.lbfgs import LBFGS
from textleak.matching.matcher import Kin, Matcher
from textleak.matching.objectives import TAG, CosineGlobal, CosinePerTensor, Moments, Objective, SquaredL2
from textleak.matching.optimizers import Adam, LinearDecay, MilestoneDecay, Optimizer, StepDecay
from textleak.matching.policies import Patient, Race
from textleak.matching.pool import Pool
from textleak.matching.rules import (
    Call,
    Contribution,
    Formed,
    Outer,
    Rows,
    Sum,
    find_rule,
    register_rule,
    scale_and_bias,
)
from textleak.matching.target import Damage, Target, TargetTensor

__all__ = [
    "LBFGS",
    "TAG",
    "Adam",
    "BenchRow",
    "Call",
    "Candidates",
    "Capture",
    "Contribution",
    "CosineGlobal",
    "CosinePerTensor",
    "Crossing",
    "Damage",
    "Ending",
    "Formed",
    "Iterate",
    "Kin",
    "Leaves",
    "Limits",
    "LinearDecay",
    "Matcher",
    "MilestoneDecay",
    "ModelFunction",
    "Moments",
    "Objective",
    "ObjectiveFunction",
    "Optimizer",
    "Outer",
    "Patient",
    "Pool",
    "Project",
    "Race",
    "Rows",
    "Spent",
    "SquaredL2",
    "StepDecay",
    "Sum",
    "Target",
    "TargetTensor",
    "Turns",
    "benchmark",
    "find_rule",
    "minimize",
    "minimize_in_turns",
    "register_rule",
    "scale_and_bias",
]
