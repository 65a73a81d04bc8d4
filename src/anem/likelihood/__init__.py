"""Likelihoods, and the checks that they deserve the name.

Figures of one energy U(y, Σ) ≈ −log p(y given Σ), none of which needs the truth:

* :func:`bits_per_dim`: a bound on the code length of 8-bit images, which is one only if ∫ e^{−U} dy = 1;
* :func:`log_evidence`: log p(m) of a measurement;
* :func:`log_partition`: log Z(Σ) = log ∫ e^{−U(y, Σ)} dy, by weighted paths from the anchor;
* :func:`flow_log_prob`: the probability-flow likelihood, which uses ∇_yU alone and so cannot see a wrong constant of U;
* :func:`immse_slope`: how E[U] grows with the noise, against the denoising error.

:func:`audits` runs seven identities of a true energy on held-out images; :func:`score` says how probable given restorations are.

All sums are in float64.
"""

from anem.likelihood.audits import (
    Check,
    audit_flow,
    audit_gradient,
    audit_partition,
    audit_paths,
    audit_strangers,
    audit_variance,
    path_integral,
)
from anem.likelihood.audits_ranks import Ranks, audit_ranks, truth_ranks
from anem.likelihood.audits_suite import Audit, AuditSize, audits, strange_images, trusted_level
from anem.likelihood.bits import BitsPerDim, bits_per_dim, choose_sigma, log_box_mixture
from anem.likelihood.diagnose import Comparison, Scores, compare, score
from anem.likelihood.evidence import average_evidence, draw_observations, log_evidence
from anem.likelihood.flow import FlowLikelihood, flow_log_prob
from anem.likelihood.partition import Partition, log_partition
from anem.likelihood.path import anchor, anchor_log_prob, geometric_path
from anem.likelihood.slope import Slope, immse_slope

__all__ = [
    "Audit",
    "AuditSize",
    "BitsPerDim",
    "Check",
    "Comparison",
    "FlowLikelihood",
    "Partition",
    "Ranks",
    "Scores",
    "Slope",
    "anchor",
    "anchor_log_prob",
    "audit_flow",
    "audit_gradient",
    "audit_partition",
    "audit_paths",
    "audit_ranks",
    "audit_strangers",
    "audit_variance",
    "audits",
    "average_evidence",
    "bits_per_dim",
    "choose_sigma",
    "compare",
    "draw_observations",
    "flow_log_prob",
    "geometric_path",
    "immse_slope",
    "log_box_mixture",
    "log_evidence",
    "log_partition",
    "path_integral",
    "score",
    "strange_images",
    "trusted_level",
    "truth_ranks",
]
