"""What surrounds the work of a job: the processes that it forks, the cores that they may use, and what is already done."""
