"""Code that the commands share: turns the files of runs into tables, verdicts and charts."""
