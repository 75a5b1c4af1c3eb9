"""The runs of a table as jobs of a scheduler, through submitit."""
