"""What a cluster's jobs finished for a run that had ended before them, Snakemake has no record of: they are not taken for results of this run."""

if workflow.is_main_process and not workflow.remote_exec and ALONE:
    made = {str(output) for rule in workflow.rules for output in rule.output if str(output).startswith("results/")}
    expire(file for pattern in made for file in Path().glob(re.sub(r"\{[^}]+\}", "*", pattern)))
