"""From the files of runs to tables, verdicts and charts: what the commands share."""
