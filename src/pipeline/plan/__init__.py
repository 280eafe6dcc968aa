"""What a run will cost before anything starts: jobs, hours, memory and disk, counted from the study and from rates that were measured."""
