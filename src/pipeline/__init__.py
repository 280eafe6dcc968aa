"""slide2surv: from raw slides to survival predictions. A plain library; it knows nothing of Snakemake."""

__version__ = "0.1.0"
